//! The GPU's kernels, run on the host block by block and thread by thread, against their twins and naive references. Skipped, with
//! a word on stderr, where there is no C++ compiler.
#![cfg(feature = "emulator")]
mod attend;
mod pick;
mod product;
mod rows;

use omnidecode_core::noise::unit;
use omnidecode_kernels::cuda::args::*;
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_kernels::cuda::{Address, Buffer, Call, Device, ENTRIES, Entry, Launch};

/// A device and its buffers.
struct Bench {
    device: Emulator,
}
impl Bench {
    fn new() -> Option<Bench> {
        Emulator::new().map(|device| Bench { device })
    }
    fn put<T: Plain>(&mut self, values: &[T]) -> Buffer {
        let bytes = T::bytes(values);
        let buffer = self.device.alloc(bytes.len()).unwrap();
        self.device.write(&buffer, 0, bytes).unwrap();
        buffer
    }
    /// Memory that shows whether all of it was written.
    fn poisoned(&mut self, floats: usize) -> Buffer {
        self.put(&vec![f32::NAN; floats])
    }
    fn get<T: Plain>(&mut self, buffer: &Buffer) -> Vec<T> {
        let mut bytes = vec![0; buffer.len()];
        self.device.read(buffer, 0, &mut bytes).unwrap();
        T::from_bytes(&bytes)
    }
    fn run(&mut self, entry: Entry, call: Call, grid: [u32; 3]) {
        self.device.launch(&[Launch { entry, call, grid }]).unwrap();
    }
    /// Rows of activations `[rows, k]` of this width, empty.
    fn acts(&mut self, rows: usize, k: usize, forms: u32, squares: bool, eps: f32) -> (Acts, [Buffer; 5]) {
        let kp = k.next_multiple_of(CHUNK);
        let buffers = [
            self.device.alloc(rows * kp).unwrap(),
            self.device.alloc(rows * kp / 4).unwrap(),
            self.device.alloc(rows * kp * 2).unwrap(),
            self.device.alloc(rows * kp * 4).unwrap(),
            self.device.alloc(rows * kp / 8).unwrap(),
        ];
        let acts = Acts {
            codes: buffers[0].address(),
            scales: buffers[1].address(),
            bf16: buffers[2].address(),
            floats: buffers[3].address(),
            squares: if squares { buffers[4].address() } else { Address(0) },
            k: k as u32,
            kp: kp as u32,
            forms,
            eps,
        };
        (acts, buffers)
    }
    /// Identity index and stand of `rows` rows.
    fn stand(&mut self, rows: usize) -> (Buffer, Buffer) {
        let index: Vec<u32> = (0..rows as u32).collect();
        (self.put(&index), self.put(&[Stand { rows: rows as u32, ..Stand::default() }]))
    }
    /// Rows in the forms of products; with `gain` as the norm of gain `gain` leaves them.
    fn prepare(&mut self, x: &[f32], k: usize, forms: u32, gain: Option<&[f32]>, eps: f32) -> (Acts, [Buffer; 5]) {
        let rows = x.len() / k;
        let (acts, buffers) = self.acts(rows, k, forms, gain.is_some(), eps);
        let (index, stand) = self.stand(rows);
        let (x, bad) = (self.put(x), self.put(&vec![NONE; rows]));
        let gain = gain.map_or(Address(0), |g| self.put(g).address());
        let args = NormArgs {
            next: acts,
            x: x.address(),
            gain,
            index: index.address(),
            stand: stand.address(),
            bad: bad.address(),
            k: k as u32,
            scale: 1.0,
            ..NormArgs::default()
        };
        self.run(Entry::NormRows, Call::Norm(args), [rows as u32, 1, 1]);
        assert!(self.get::<u32>(&bad).iter().all(|&b| b == NONE));
        (acts, buffers)
    }
}

fn noise(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| (unit(seed * 7919 + i as u64) * 2.0 - 1.0) as f32).collect()
}
fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() <= tolerance * (1.0 + e.abs()), "{what}, {i}: {f} for {e}");
    }
}

#[test]
fn arguments_are_laid_out_alike() {
    let Some(bench) = Bench::new() else { return };
    let found: std::collections::HashMap<_, _> = bench.device.sizes().collect();
    for (entry, name, size) in ENTRIES {
        assert_eq!(found[entry], *size, "{name}");
    }
    assert_eq!(found.len(), 17);
}
