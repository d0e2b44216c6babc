//! Every kernel against its twin or its definition, on any device: the emulator in tests, a GPU where there is one.
mod attend;
mod experts;
mod pick;
mod product;
mod rows;
mod tails;

use super::args::*;
use super::{Address, Buffer, Call, Device, Entry, Launch};
use omnidecode_core::noise::unit;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The checks, by name. Each panics with what is wrong.
const CHECKS: &[(&str, fn(&mut Bench))] = &[
    (
        "products_follow_their_definition_and_rows_are_invariant",
        product::products_follow_their_definition_and_rows_are_invariant,
    ),
    ("a_branch_with_its_norms", product::a_branch_with_its_norms),
    ("gated_products_and_rows_that_are_not_numbers", product::gated_products_and_rows_that_are_not_numbers),
    ("embeddings_of_every_format", rows::embeddings_of_every_format),
    ("norms_of_their_own", rows::norms_of_their_own),
    ("rotation_is_the_twin_s_and_fills_slots", rows::rotation_is_the_twin_s_and_fills_slots),
    ("rows_are_gathered", rows::rows_are_gathered),
    ("slots_are_copied_in_order", rows::slots_are_copied_in_order),
    ("trees_are_verified_as_the_twin_does", rows::trees_are_verified_as_the_twin_does),
    ("statistics_largest_and_choices_are_the_cpu_s", pick::statistics_largest_and_choices_are_the_cpu_s),
    ("rows_without_an_answer_say_so", pick::rows_without_an_answer_say_so),
    ("attention_is_the_cpu_s_within_rounding", attend::attention_is_the_cpu_s_within_rounding),
    ("rows_are_invariant", attend::rows_are_invariant),
    ("experts_are_chosen_by_weight", experts::experts_are_chosen_by_weight),
    ("experts_give_the_bits_of_dense_products", experts::experts_give_the_bits_of_dense_products),
    ("products_by_the_library_end_as_the_own", experts::products_by_the_library_end_as_the_own),
    ("neurons_are_clamped", experts::neurons_are_clamped),
    ("attention_weights_are_the_softmax", experts::attention_weights_are_the_softmax),
    ("norms_behind_products", tails::norms_behind_products),
    ("rotation_behind_products", tails::rotation_behind_products),
    ("choices_behind_routers", tails::choices_behind_routers),
    ("quantized_weights_are_unpacked", tails::quantized_weights_are_unpacked),
    ("choices_are_cut_as_the_cpu_cuts", pick::choices_are_cut_as_the_cpu_cuts),
];

/// Names of all checks.
pub fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|c| c.0)
}

/// Run a check on a device, and give the device back with what went wrong, if something did.
pub fn run(name: &str, device: Box<dyn Device>) -> (Box<dyn Device>, Result<(), String>) {
    let mut bench = Bench { device };
    let Some(check) = CHECKS.iter().find(|c| c.0 == name) else {
        return (bench.device, Err(format!("no check {name}")));
    };
    let done = catch_unwind(AssertUnwindSafe(|| (check.1)(&mut bench)));
    let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| "panicked".into(), |text| text.to_string()),
    };
    (bench.device, done.map_err(text))
}

/// A device and its buffers.
struct Bench {
    device: Box<dyn Device>,
}
impl Bench {
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

#[cfg(test)]
mod tests {
    /// Every kernel is launched by a check, so that one script finds on a GPU what is wrong with any of them.
    #[test]
    fn every_kernel_has_a_check() {
        let checks = [
            include_str!("attend.rs"),
            include_str!("experts.rs"),
            include_str!("pick.rs"),
            include_str!("product.rs"),
            include_str!("rows.rs"),
            include_str!("tails.rs"),
        ]
        .concat();
        for (entry, name, _) in super::super::ENTRIES {
            assert!(checks.contains(&format!("Entry::{entry:?}")), "{name} has no check");
        }
    }
}
