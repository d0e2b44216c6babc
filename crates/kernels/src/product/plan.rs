//! How the jobs of a dispatch are cut into chunks.

use std::ops::Range;

/// Chunks for each thread, so that a thread that started late or lost its core leaves little to wait for.
const CHUNKS_PER_THREAD: usize = 8;

/// Weights in a chunk, in bytes: below the first a dispatch would cost more than the read, above the second a late thread
/// would hold up the rest.
const CHUNK_BYTES: [usize; 2] = [16 << 10, 512 << 10];

/// Activations that stay in a core's own cache while tile after tile of weights passes by, in bytes.
const ROWS_BYTES: usize = 384 << 10;

/// Rows that at least pass while a tile of weights is in the cache.
const LEAST_ROWS: usize = 48;

/// What matters of a job.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// Tiles of sixteen outputs.
    pub tiles: usize,
    /// Weights behind one of them, in bytes.
    pub tile_bytes: usize,
    /// Output rows.
    pub rows: usize,
    /// One row of activations, in bytes.
    pub row_bytes: usize,
}

/// How large chunks are in one dispatch.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    chunk_bytes: usize,
    threads: usize,
}

impl Plan {
    /// For jobs that read `bytes` of weights together.
    pub fn new(bytes: usize, threads: usize) -> Plan {
        let [least, most] = CHUNK_BYTES;
        Plan { chunk_bytes: (bytes / (threads * CHUNKS_PER_THREAD)).clamp(least, most), threads }
    }

    /// Groups of tiles, the same number for every thread where there are tiles enough, and rows of one chunk.
    fn cut(self, job: Size) -> (usize, usize) {
        let most = (self.chunk_bytes / job.tile_bytes.max(1)).max(1);
        let groups = job.tiles.div_ceil(most).next_multiple_of(self.threads).min(job.tiles);
        if job.rows * job.row_bytes <= ROWS_BYTES {
            return (groups, job.rows);
        }
        let rows = (ROWS_BYTES / job.row_bytes).max(LEAST_ROWS);
        (groups, job.rows.div_ceil(job.rows.div_ceil(rows)))
    }

    /// Chunks of a job.
    pub fn chunks(self, job: Size) -> usize {
        let (groups, rows) = self.cut(job);
        if rows == 0 { 0 } else { groups * job.rows.div_ceil(rows) }
    }

    /// The tiles and rows of a job's chunk. The rows of one group of tiles follow each other, so that the group is read from
    /// memory once.
    pub fn piece(self, job: Size, chunk: usize) -> (Range<usize>, Range<usize>) {
        let (groups, rows) = self.cut(job);
        let blocks = job.rows.div_ceil(rows);
        let (group, row) = (chunk / blocks, chunk % blocks * rows);
        // Sizes differ by a tile at most.
        let first = |group: usize| group * job.tiles / groups;
        (first(group)..first(group + 1), row..(row + rows).min(job.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_tile_of_every_row_once() {
        for (tiles, tile_bytes, rows, row_bytes) in
            [(1, 64, 1, 52), (36, 5760, 1, 936), (7, 1 << 20, 600, 13000), (100, 3000, 512, 3328), (5, 100, 0, 52)]
        {
            let job = Size { tiles, tile_bytes, rows, row_bytes };
            for threads in [1, 2, 64] {
                let plan = Plan::new(tiles * tile_bytes, threads);
                let mut seen = vec![0; tiles * rows];
                for chunk in 0..plan.chunks(job) {
                    let (tiles, some) = plan.piece(job, chunk);
                    for tile in tiles {
                        some.clone().for_each(|row| seen[tile * rows + row] += 1);
                    }
                }
                assert!(seen.iter().all(|&times| times == 1), "{tiles} tiles, {rows} rows, {threads} threads");
            }
        }
    }
}
