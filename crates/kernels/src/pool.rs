//! A few threads that share the chunks of one loop: the only parallelism inside a step.
//!
//! A step dispatches some 150 short loops, so a dispatch costs about a microsecond and allocates nothing. Workers spin for
//! [`SPIN`] after their last chunk and then sleep, so that an idle engine uses no core; the caller takes part in its own
//! loop and never waits for a worker that has not begun, so a core taken by another process costs its share and no more.
//!
//! Each thread begins with a stretch of neighbouring chunks of its own, so that it reads memory as one stream, and then
//! takes what is left of the others' stretches from their ends.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for work, or for the end of a loop, before it sleeps.
const SPIN: Duration = Duration::from_micros(40);

/// The loop that is running: borrowed from the caller's stack for as long as a worker can see the open bit.
type Body = *const (dyn Fn(usize) + Sync);

/// `state` is `epoch << 32 | OPEN? | workers inside`. A worker enters only while the bit is set, so that the caller, once
/// it has cleared the bit, waits for those inside and for nobody else.
const OPEN: u64 = 1 << 31;
const EPOCH: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;

/// One cache line pair each: the counters are written by every thread.
#[repr(align(128))]
struct Line<T>(T);

impl Line<AtomicU64> {
    /// Takes a chunk of a stretch: `pick(next, end)` says which, and what is left then. `None` where none is.
    fn take(&self, pick: impl Fn(u64, u64) -> (u64, u64, u64)) -> Option<usize> {
        let left = |word: u64| (word & u64::from(u32::MAX), word >> 32);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (next, end) = left(word);
            let (_, next, end) = (next < end).then(|| pick(next, end))?;
            Some(end << 32 | next)
        });
        let (next, end) = left(taken.ok()?);
        Some(pick(next, end).0 as usize)
    }
}

/// What caller and workers share.
struct Shared {
    state: Line<AtomicU64>,
    /// What is left of each thread's stretch of chunks: `end << 32 | next`.
    parts: Box<[Line<AtomicU64>]>,
    body: UnsafeCell<Option<Body>>,
    sleeping: AtomicUsize,
    caller_sleeps: AtomicBool,
    wake: Condvar,
    done: Condvar,
    bed: Mutex<bool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `body` is written only by the caller that holds the dispatch lock, while the open bit is clear and
// no worker is inside; workers read them only between entering (acquire) and leaving (release).
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
    crew: AtomicPtr<Crew>,
}

thread_local! {
    static IN_CHUNK: Cell<bool> = const { Cell::new(false) };
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

/// The number of threads to use: the first of OMNIDECODE_NUM_THREADS, OMP_NUM_THREADS and RAYON_NUM_THREADS that holds a
/// positive number, else what the affinity mask and the cgroup's processor quota leave to this process.
pub fn default_threads() -> usize {
    ["OMNIDECODE_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"]
        .into_iter()
        .find_map(|name| threads_in(&std::env::var(name).ok()?))
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// A thread count as OpenMP writes it: the first of a comma-separated list; nothing where that is no positive number.
fn threads_in(text: &str) -> Option<usize> {
    text.split(',').next()?.trim().parse().ok().filter(|&threads| threads > 0)
}

impl Pool {
    /// A pool of `threads` threads, the caller among them (0 counts as 1). Its workers start with the first loop.
    pub fn new(threads: usize) -> Pool {
        generation();
        Pool { threads: threads.max(1), crew: AtomicPtr::new(std::ptr::null_mut()) }
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
        let crew = Box::into_raw(Box::new(Crew::new(self.threads - 1)));
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
    fn new(workers: usize) -> Crew {
        // Leaked on purpose while threads run: given back by `dismiss`, once they have ended.
        let shared: &'static Shared = Box::leak(Box::new(Shared::new(workers + 1)));
        let workers = (0..workers)
            .map_while(|index| {
                let thread = std::thread::Builder::new().name(format!("omnidecode-{index}"));
                thread.spawn(move || shared.work(index + 1)).ok()
            })
            .collect();
        Crew { generation: generation(), dispatch: Mutex::new(()), shared, workers }
    }

    /// Sends the workers home and frees what they shared.
    fn dismiss(self) {
        let shared = self.shared;
        *lock(&shared.bed) = true;
        shared.state.0.fetch_add(EPOCH, Ordering::SeqCst);
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
            state: Line(AtomicU64::new(0)),
            parts: (0..threads).map(|_| Line(AtomicU64::new(0))).collect(),
            body: UnsafeCell::new(None),
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
        // SAFETY: the open bit is clear and nobody is inside (the last `run` waited for that), so nobody reads these. The
        // lifetime of the borrow is erased, and `run` does not return before the last reader has left.
        unsafe {
            *self.body.get() = Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync), Body>(body));
        }
        let parts = self.parts.len();
        for (index, part) in self.parts.iter().enumerate() {
            let (next, end) = (chunks * index / parts, chunks * (index + 1) / parts);
            part.0.store((end as u64) << 32 | next as u64, Ordering::Relaxed);
        }
        let epoch = (self.state.0.load(Ordering::Relaxed) & !(EPOCH - 1)).wrapping_add(EPOCH);
        self.state.0.store(epoch | OPEN, Ordering::SeqCst);
        // Pairs with the fence of a worker that goes to sleep: either it sees the new state, or we see it asleep.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
        self.grab(0, body);
        let mut state = self.state.0.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        if state & INSIDE != 0 {
            let mut spin = Spin::new();
            while state & INSIDE != 0 {
                if !spin.again() {
                    self.sleep_till_done();
                    break;
                }
                state = self.state.0.load(Ordering::Acquire);
            }
        }
        // The pointer must not outlive the borrow.
        // SAFETY: nobody is inside, and the open bit is clear.
        unsafe { *self.body.get() = None };
        // Uncontended here: a worker locks it only after a panic.
        lock(&self.panic).take()
    }

    #[cold]
    fn sleep_till_done(&self) {
        let mut bed = lock(&self.bed);
        self.caller_sleeps.store(true, Ordering::SeqCst);
        // Pairs with the fence of a leaving worker: either it sees the caller asleep, or the caller sees that it has left.
        fence(Ordering::SeqCst);
        while self.state.0.load(Ordering::Acquire) & INSIDE != 0 {
            bed = self.done.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::Relaxed);
    }

    /// Runs chunks until none is left: thread `own`'s first, then the last ones of the others.
    fn grab(&self, own: usize, body: &(dyn Fn(usize) + Sync)) {
        IN_CHUNK.set(true);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            while let Some(chunk) = self.parts[own].take(|next, end| (next, next + 1, end)) {
                body(chunk);
            }
            for (_, part) in self.parts.iter().enumerate().filter(|&(index, _)| index != own) {
                while let Some(chunk) = part.take(|next, end| (end - 1, next, end - 1)) {
                    body(chunk);
                }
            }
        }));
        IN_CHUNK.set(false);
        if let Err(payload) = ended {
            // Nobody begins another chunk of a loop that has failed.
            self.parts.iter().for_each(|part| part.0.store(0, Ordering::Relaxed));
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// The life of worker `own`.
    fn work(&self, own: usize) {
        let mut seen = 0;
        while let Some(state) = self.await_loop(seen) {
            seen = state & !(EPOCH - 1);
            // SAFETY: this worker is inside, so the caller has not returned and the body is alive.
            let body = unsafe { (*self.body.get()).map(|body| &*body) };
            if let Some(body) = body {
                self.grab(own, body);
            }
            let left = self.state.0.fetch_sub(1, Ordering::AcqRel) - 1;
            fence(Ordering::SeqCst);
            if left & (OPEN | INSIDE) == 0 && self.caller_sleeps.load(Ordering::Relaxed) {
                drop(lock(&self.bed));
                self.done.notify_one();
            }
        }
    }

    /// Waits for a loop of a later epoch than `seen` and enters it; `None` when the pool is dropped.
    fn await_loop(&self, seen: u64) -> Option<u64> {
        let mut spin = Spin::new();
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            if state & !(EPOCH - 1) != seen && state & OPEN != 0 {
                if self.state.0.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return Some(state);
                }
                continue;
            }
            if spin.again() {
                continue;
            }
            let mut bed = lock(&self.bed);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while !*bed {
                let state = self.state.0.load(Ordering::SeqCst);
                if state & !(EPOCH - 1) != seen && state & OPEN != 0 {
                    break;
                }
                bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            if *bed {
                return None;
            }
            drop(bed);
            spin = Spin::new();
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
