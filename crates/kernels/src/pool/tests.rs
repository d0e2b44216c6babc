//! Every chunk once, whatever happens around it.

use super::*;

fn sums(pool: &Pool, chunks: usize) {
    let hits: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(chunks, &|chunk| {
        hits[chunk].fetch_add(1, Ordering::Relaxed);
    });
    assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1));
}

#[test]
fn every_chunk_runs_once_for_any_number_of_threads() {
    for threads in [0, 1, 2, 3, 8] {
        let pool = Pool::new(threads);
        for chunks in [0, 1, 2, 7, 100] {
            for _ in 0..200 {
                sums(&pool, chunks);
            }
        }
    }
}

#[test]
fn sleeping_workers_come_back() {
    let pool = Pool::new(3);
    for _ in 0..20 {
        sums(&pool, 9);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(4);
    for bad in [0, 5, 63] {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|chunk| assert!(chunk != bad, "chunk {bad} fails"));
        }));
        let message = *caught.expect_err("must panic").downcast::<String>().expect("a message");
        assert!(message.contains("fails"), "{message}");
        sums(&pool, 64);
    }
}

#[test]
fn a_loop_inside_a_chunk_runs_in_place() {
    let pool = Pool::new(3);
    let count = AtomicUsize::new(0);
    pool.run(8, &|_| {
        let here = std::thread::current().id();
        pool.run(5, &|_| {
            assert_eq!(std::thread::current().id(), here);
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(count.into_inner(), 40);
}

#[test]
fn several_threads_share_one_pool() {
    let pool = Pool::new(3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..300).for_each(|_| sums(&pool, 10)));
        }
    });
}

#[test]
#[cfg(unix)]
fn a_forked_child_gets_workers_of_its_own() {
    let pool = Pool::new(3);
    sums(&pool, 16);
    // SAFETY: the child touches only this pool and leaves by `_exit`.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let ok = catch_unwind(AssertUnwindSafe(|| (0..50).for_each(|_| sums(&pool, 16)))).is_ok();
            libc::_exit(i32::from(!ok));
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert_eq!(status, 0);
    }
    sums(&pool, 16);
}

#[test]
fn thread_counts_are_read_as_openmp_writes_them() {
    assert_eq!(processors::threads_in("4"), Some(4));
    assert_eq!(processors::threads_in(" 3,2"), Some(3));
    assert_eq!(processors::threads_in("0"), None);
    assert_eq!(processors::threads_in("many"), None);
    assert!(default_threads() >= 1);
}

#[test]
#[cfg(target_os = "linux")]
fn pinned_threads_have_a_processor_each() {
    let mine = || processors::seats(1)[0];
    // A pinned thread stays pinned, so the caller is a thread of its own.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(3);
            let seats = processors::seats(threads);
            let pool = Pool::on(threads, seats.clone());
            pool.pin_caller();
            assert_eq!(mine(), seats[0]);
            let seen = Mutex::new(std::collections::BTreeMap::new());
            for _ in 0..200 {
                pool.run(64, &|_| {
                    lock(&seen).insert(std::thread::current().name().map(str::to_owned), mine());
                    std::thread::sleep(Duration::from_micros(20));
                });
            }
            let seen: Vec<usize> = seen.into_inner().expect("no panic").into_values().collect();
            assert_eq!(seen[..], seats[..], "the caller has no name and comes first");
        });
    });
    assert!(processors::seats(4096).is_empty(), "more threads than processors stay free");
}
