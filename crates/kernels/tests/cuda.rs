//! Every check of the GPU's kernels, on kernels that the host runs block by block and thread by thread. Skipped, with a word
//! on stderr, where there is no C++ compiler.
#![cfg(feature = "emulator")]
use omnidecode_kernels::cuda::emulate::Emulator;
use omnidecode_kernels::cuda::{ENTRIES, check};

#[test]
fn arguments_are_laid_out_alike() {
    let Some(emulator) = Emulator::new() else { return };
    let found: std::collections::HashMap<_, _> = emulator.sizes().collect();
    for (entry, name, size) in ENTRIES {
        assert_eq!(found[entry], *size, "{name}");
    }
    assert_eq!(found.len(), ENTRIES.len());
}

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            let Some(emulator) = Emulator::new() else { return };
            check::run(stringify!($name), Box::new(emulator)).1.unwrap_or_else(|wrong| panic!("{wrong}"));
        })*
        #[test]
        fn all_checks_are_run() {
            assert!(check::names().eq([$(stringify!($name)),*]));
        }
    };
}
checks! {
    products_follow_their_definition_and_rows_are_invariant,
    a_branch_with_its_norms,
    gated_products_and_rows_that_are_not_numbers,
    embeddings_of_every_format,
    norms_of_their_own,
    rotation_is_the_twin_s_and_fills_slots,
    rows_are_gathered,
    slots_are_copied_in_order,
    trees_are_verified_as_the_twin_does,
    statistics_largest_and_choices_are_the_cpu_s,
    rows_without_an_answer_say_so,
    attention_is_the_cpu_s_within_rounding,
    rows_are_invariant,
    experts_are_chosen_by_weight,
    experts_give_the_bits_of_dense_products,
    products_by_the_library_end_as_the_own,
    neurons_are_clamped,
    attention_weights_are_the_softmax,
    norms_behind_products,
    rotation_behind_products,
    choices_behind_routers,
    quantized_weights_are_unpacked,
    choices_are_cut_as_the_cpu_cuts,
}
