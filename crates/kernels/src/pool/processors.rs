//! The processors that this process may use.

/// The number of threads to use: the first of OMNIDECODE_NUM_THREADS, OMP_NUM_THREADS and RAYON_NUM_THREADS that holds a
/// positive number, else what the affinity mask and the cgroup's processor quota leave to this process.
pub fn default_threads() -> usize {
    ["OMNIDECODE_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"]
        .into_iter()
        .find_map(|name| threads_in(&std::env::var(name).ok()?))
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// A thread count as OpenMP writes it: the first of a comma-separated list; nothing where that is no positive number.
pub(super) fn threads_in(text: &str) -> Option<usize> {
    text.split(',').next()?.trim().parse().ok().filter(|&threads| threads > 0)
}

/// A processor for each of so many threads, those that this thread may use in their order; none where they are too few.
pub(super) fn seats(threads: usize) -> Box<[usize]> {
    #[cfg(target_os = "linux")]
    // SAFETY: the set is plain data that the call writes within its size; 0 stands for this thread.
    unsafe {
        let mut may: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut may) == 0 {
            let all = (0..libc::CPU_SETSIZE as usize).filter(|&processor| libc::CPU_ISSET(processor, &may));
            let some: Box<[usize]> = all.take(threads).collect();
            return if some.len() == threads { some } else { [].into() };
        }
    }
    let _ = threads;
    [].into()
}

/// Keeps this thread on a processor; where the system refuses, it stays free.
pub(super) fn pin(processor: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: as in `seats`; the processor came from there, so it lies in the set's range.
    unsafe {
        let mut own: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut own);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &own);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processor;
}
