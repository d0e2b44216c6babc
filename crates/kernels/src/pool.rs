//! A few threads that share the chunks of one loop: the only parallelism inside a step.
//!
//! A step dispatches hundreds of short loops, so a dispatch costs about a microsecond and allocates nothing: what a worker
//! must know lies in one cache line of its own, because a line that another core wrote takes a fifth of a microsecond.
//! Workers spin for [`SPIN`] after their last chunk and then sleep, so that an idle engine uses no core; the caller takes
//! part in its own loop and never waits for a worker that has not begun, so a core taken by another process costs its share
//! and no more.
//!
//! Each thread begins with a stretch of neighbouring chunks of its own, so that it reads memory as one stream, and then
//! takes what is left of the others' stretches from their ends.

mod processors;

pub use processors::default_threads;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for work, or for the end of a loop, before it sleeps.
const SPIN: Duration = Duration::from_micros(40);

/// The loop that is running: borrowed from the caller's stack for as long as a chunk of it is left or has not ended.
type Body = *const (dyn Fn(usize) + Sync);

/// Cache lines that neighbours do not share; two, because processors fetch lines in pairs.
#[repr(align(128))]
struct Line<T>(T);

/// What a thread looks at while it waits, and all that it needs to begin.
struct Seat {
    /// What is left of this thread's stretch of chunks: `end << 32 | next`.
    part: AtomicU64,
    body: UnsafeCell<Body>,
}

/// The ends of a stretch.
fn ends(part: u64) -> (u64, u64) {
    (part & u64::from(u32::MAX), part >> 32)
}

/// Which end of a stretch a chunk is taken from.
#[derive(Clone, Copy, PartialEq)]
enum End {
    First,
    Last,
}

impl Seat {
    fn new() -> Seat {
        let nothing: &'static (dyn Fn(usize) + Sync) = &|_| {};
        Seat { part: AtomicU64::new(0), body: UnsafeCell::new(nothing) }
    }

    fn is_empty(&self) -> bool {
        let (next, end) = ends(self.part.load(Ordering::Relaxed));
        next >= end
    }

    /// Takes a chunk, if one is left.
    fn take(&self, from: End) -> Option<usize> {
        let taken = self.part.fetch_update(Ordering::Acquire, Ordering::Relaxed, |part| {
            let (next, end) = ends(part);
            (next < end).then(|| if from == End::First { end << 32 | (next + 1) } else { (end - 1) << 32 | next })
        });
        let (next, end) = ends(taken.ok()?);
        Some(if from == End::First { next } else { end - 1 } as usize)
    }
}

/// What caller and workers share. Whoever has taken a chunk may read the body until it has counted that chunk as ended:
/// the caller waits for that, and changes no body before.
struct Shared {
    /// The caller's first.
    seats: Box<[Line<Seat>]>,
    /// Chunks that have not ended.
    left: Line<AtomicUsize>,
    sleeping: AtomicUsize,
    caller_sleeps: AtomicBool,
    wake: Condvar,
    done: Condvar,
    bed: Mutex<bool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: a body is written only by the caller that holds the dispatch lock, while no chunk is left and all have ended;
// it is read only by threads that have taken a chunk (acquire) and not yet counted it (release).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// The threads of one process: made anew in a forked child, where the old ones do not exist.
struct Crew {
    generation: u32,
    dispatch: Mutex<()>,
    shared: &'static Shared,
    workers: Vec<JoinHandle<()>>,
}

/// A pool of worker threads for short parallel loops. Usable from several threads (one loop at a time); a loop started
/// from inside a chunk runs in place.
pub struct Pool {
    threads: usize,
    /// The processor of each thread, the caller's first; none where threads are free.
    seats: Box<[usize]>,
    crew: AtomicPtr<Crew>,
}

thread_local! {
    static IN_CHUNK: Cell<bool> = const { Cell::new(false) };
    static PINNED: Cell<bool> = const { Cell::new(false) };
}

/// Counts the forks that led to this process, so that a dispatch can tell without a system call that its threads are gone.
fn generation() -> u32 {
    static FORKS: AtomicU32 = AtomicU32::new(0);
    #[cfg(unix)]
    {
        extern "C" fn child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        static HOOK: Once = Once::new();
        // SAFETY: the handler only adds to an atomic, which is async-signal-safe.
        HOOK.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(child));
        });
    }
    FORKS.load(Ordering::Relaxed)
}

impl Pool {
    /// A pool of `threads` threads, the caller among them (0 counts as 1). Its workers start with the first loop.
    pub fn new(threads: usize) -> Pool {
        generation();
        let threads = threads.max(1);
        let pinned = std::env::var("OMNIDECODE_PIN_THREADS").is_ok_and(|text| text.trim() == "1");
        Pool::on(threads, if pinned { processors::seats(threads) } else { [].into() })
    }

    fn on(threads: usize, seats: Box<[usize]>) -> Pool {
        Pool { threads, seats, crew: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Keeps the calling thread, which is the one that runs all loops, on a processor of its own, if the pool is pinned.
    ///
    /// It is where `OMNIDECODE_PIN_THREADS` was 1 when it was made and there was a processor for each thread: each worker
    /// then stays on its own. That keeps caches warm on a machine that runs nothing else; two pinned processes would
    /// fight for the same processors, so it is not the default.
    pub fn pin_caller(&self) {
        if let Some(&processor) = self.seats.first()
            && !PINNED.replace(true)
        {
            processors::pin(processor);
        }
    }

    /// Threads that share a loop, the caller among them.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `body(chunk)` once for every `chunk` in `0..chunks`, on all threads, in no fixed order, and returns when all
    /// calls have returned.
    ///
    /// # Panics
    /// With the payload of a chunk that panicked, after the others have ended.
    pub fn run(&self, chunks: usize, body: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 || chunks <= 1 || IN_CHUNK.get() {
            for chunk in 0..chunks {
                body(chunk);
            }
            return;
        }
        let crew = self.crew();
        let turn = lock(&crew.dispatch);
        let panic = crew.shared.run(chunks, body);
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// The crew of this process, hired on first use and again in a forked child.
    fn crew(&self) -> &Crew {
        let found = self.crew.load(Ordering::Acquire);
        // SAFETY: a crew, once stored, is freed only by `drop`, which has the pool to itself; a crew of the parent process
        // is never freed in a child.
        match unsafe { found.as_ref() } {
            Some(crew) if crew.generation == generation() => crew,
            _ => self.hire(found),
        }
    }

    #[cold]
    fn hire(&self, old: *mut Crew) -> &Crew {
        let crew = Box::into_raw(Box::new(Crew::new(self.threads - 1, &self.seats)));
        match self.crew.compare_exchange(old, crew, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just made, and owned by the pool from here on. What stood there before belongs to the parent process:
            // its locks may be held by threads that do not exist here, so it is left alone.
            Ok(_) => unsafe { &*crew },
            Err(other) => {
                // SAFETY: ours was not published; the other thread's was.
                unsafe {
                    Box::from_raw(crew).dismiss();
                    &*other
                }
            }
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Pool::new(default_threads())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let crew = *self.crew.get_mut();
        if crew.is_null() {
            return;
        }
        // SAFETY: the pool owns the crew, and nobody else can hold the pool now.
        let crew = unsafe { Box::from_raw(crew) };
        if crew.generation == generation() {
            crew.dismiss();
        } else {
            std::mem::forget(crew);
        }
    }
}

impl Crew {
    fn new(workers: usize, seats: &[usize]) -> Crew {
        // Leaked on purpose while threads run: given back by `dismiss`, once they have ended.
        let shared: &'static Shared = Box::leak(Box::new(Shared::new(workers + 1)));
        let workers = (0..workers)
            .map_while(|index| {
                let thread = std::thread::Builder::new().name(format!("omnidecode-{index}"));
                let seat = seats.get(index + 1).copied();
                let live = move || {
                    seat.into_iter().for_each(processors::pin);
                    while shared.await_chunks(index + 1) {
                        shared.work(index + 1);
                    }
                };
                thread.spawn(live).ok()
            })
            .collect();
        Crew { generation: generation(), dispatch: Mutex::new(()), shared, workers }
    }

    /// Sends the workers home and frees what they shared.
    fn dismiss(self) {
        let shared = self.shared;
        *lock(&shared.bed) = true;
        shared.wake.notify_all();
        for worker in self.workers {
            // A worker catches the panics of its chunks, so it cannot end in one.
            let _ = worker.join();
        }
        // SAFETY: made by `Box::leak` in `new`; its threads have ended.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(shared).cast_mut()) });
    }
}

impl Shared {
    fn new(threads: usize) -> Shared {
        Shared {
            seats: (0..threads).map(|_| Line(Seat::new())).collect(),
            left: Line(AtomicUsize::new(0)),
            sleeping: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            wake: Condvar::new(),
            done: Condvar::new(),
            bed: Mutex::new(false),
            panic: Mutex::new(None),
        }
    }

    /// Runs one loop; the caller holds the dispatch lock. Gives back the first panic.
    fn run(&self, chunks: usize, body: &(dyn Fn(usize) + Sync)) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime is erased. `run` does not return before all chunks have ended.
        let body = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), Body>(body) };
        self.left.0.store(chunks, Ordering::Relaxed);
        for Line(seat) in &self.seats {
            // SAFETY: no chunk is left of the last loop and all have ended, so nobody reads this.
            unsafe { *seat.body.get() = body };
        }
        let threads = self.seats.len();
        for (index, Line(seat)) in self.seats.iter().enumerate().rev() {
            let (next, end) = (chunks * index / threads, chunks * (index + 1) / threads);
            seat.part.store((end as u64) << 32 | next as u64, Ordering::Release);
        }
        // A worker that goes to sleep just now may be overlooked: then this loop does without it.
        if self.sleeping.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
        self.work(0);
        let mut spin = Spin::new();
        while self.left.0.load(Ordering::Acquire) > 0 {
            if !spin.again() {
                self.sleep_till_done();
            }
        }
        // Uncontended here: a worker locks it only after a panic.
        lock(&self.panic).take()
    }

    #[cold]
    fn sleep_till_done(&self) {
        let mut bed = lock(&self.bed);
        // In one order with what `ended` does: either it sees the caller asleep, or the caller sees that all has ended.
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while self.left.0.load(Ordering::SeqCst) > 0 {
            bed = self.done.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::Relaxed);
    }

    /// Runs chunks until none is left: thread `own`'s first, then the last ones of the others.
    fn work(&self, own: usize) {
        IN_CHUNK.set(true);
        self.drain(own, own, End::First);
        for other in (0..self.seats.len()).filter(|&other| other != own) {
            self.drain(own, other, End::Last);
        }
        IN_CHUNK.set(false);
    }

    /// Runs what is left of the stretch of `seat`.
    fn drain(&self, own: usize, seat: usize, from: End) {
        let mut count = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(chunk) = self.seats[seat].0.take(from) {
                count += 1;
                // SAFETY: this chunk has not ended, so the caller has not returned and the body is alive.
                unsafe { (**self.seats[own].0.body.get())(chunk) };
            }
        }));
        if let Err(payload) = result {
            // Nobody begins another chunk of a loop that has failed.
            for Line(seat) in &self.seats {
                let (next, end) = ends(seat.part.swap(0, Ordering::Relaxed));
                count += end.saturating_sub(next) as usize;
            }
            lock(&self.panic).get_or_insert(payload);
        }
        if count > 0 {
            self.ended(count);
        }
    }

    /// Counts chunks as ended. The caller may return at once; what is shared lives on.
    fn ended(&self, count: usize) {
        if self.left.0.fetch_sub(count, Ordering::SeqCst) == count && self.caller_sleeps.load(Ordering::SeqCst) {
            drop(lock(&self.bed));
            self.done.notify_one();
        }
    }

    /// Waits until thread `own` has a chunk; false when the pool is dropped.
    fn await_chunks(&self, own: usize) -> bool {
        let seat = &self.seats[own].0;
        loop {
            let mut spin = Spin::new();
            while seat.is_empty() && spin.again() {}
            if !seat.is_empty() {
                return true;
            }
            let mut bed = lock(&self.bed);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            if !*bed && seat.is_empty() {
                bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            if *bed {
                return false;
            }
        }
    }
}

/// Bounded spinning; looks at the clock once in a while only, because that costs as much as the wait.
struct Spin {
    turns: u32,
    since: Option<Instant>,
}

impl Spin {
    fn new() -> Spin {
        Spin { turns: 0, since: None }
    }

    /// Waits a moment; false when the time is over.
    fn again(&mut self) -> bool {
        self.turns += 1;
        std::hint::spin_loop();
        if self.turns.is_multiple_of(64) {
            return self.since.get_or_insert_with(Instant::now).elapsed() < SPIN;
        }
        true
    }
}

/// A panic in a chunk is caught before it can poison a lock in a broken state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
