//! The decoder against transformers: every tiny checkpoint of `tests/golden`, full logits, hidden states, a draft tree
//! and bidirectional attention, in f32.

use crate::common::{CASES, Golden, Runner};
use omnidecode_models::step::Visible;

const TOLERANCE: f32 = 1e-4;

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE && found.iter().all(|x| x.is_finite()), "{what}: off by {worst}");
}

#[test]
fn logits_of_every_architecture() {
    for case in CASES {
        let golden = Golden::open(case);
        let (ids, logits) = (golden.ids("input_ids"), golden.floats("logits"));
        let row = logits.len() / ids.len();
        for (prompt, (ids, expected)) in ids.chunks(24).zip(logits.chunks(24 * row)).enumerate() {
            let mut runner = Runner::load(case);
            close(&format!("{case}, prompt {prompt}"), &runner.causal(ids).logits, expected);
        }
    }
}

#[test]
fn hidden_states_before_every_layer_and_after_the_final_norm() {
    for case in CASES {
        let golden = Golden::open(case);
        let ids = &golden.ids("input_ids")[..24];
        let expected = golden.floats("hidden");
        let found = Runner::load(case).causal(ids).hidden;
        let layers = expected.len() / found[0].len();
        assert_eq!(found.len(), layers, "{case}");
        for (layer, (found, expected)) in found.iter().zip(expected.chunks(found[0].len())).enumerate() {
            close(&format!("{case}, hidden state {layer}"), found, expected);
        }
    }
}

/// The 13-node tree behind prompt 0: committed rows in pages, tree rows in the tail.
#[test]
fn draft_trees_see_their_ancestors_only() {
    let mut seen = 0;
    for case in CASES {
        let golden = Golden::open(case);
        let Some(expected) = golden.try_floats("tree_logits") else {
            continue;
        };
        seen += 1;
        let (prompt, ids) = (golden.ids("input_ids")[..24].to_vec(), golden.ids("tree_ids"));
        let (positions, mask) = (golden.ids("tree_positions"), golden.bytes("tree_mask"));
        let mut runner = Runner::load(case);
        runner.causal(&prompt);
        let see = |row: usize| -> Vec<Visible> {
            let bits = &mask[row * 37 + 24..(row + 1) * 37];
            assert!(mask[row * 37..row * 37 + 24].iter().all(|&b| b == 1));
            let visible = (0..13).filter(|&j| bits[j] == 1);
            visible.map(|j| Visible { place: positions[j], slot: runner.tail() + j as u32 }).collect()
        };
        let sights: Vec<Vec<Visible>> = (0..13).map(see).collect();
        close(case, &runner.tail_rows(&ids, &positions, 24, &sights), &expected);
    }
    assert!(seen >= 12, "only {seen} architectures had a tree");
}

#[test]
fn full_attention_sees_both_sides() {
    let mut seen = 0;
    for case in CASES {
        let golden = Golden::open(case);
        let Some(expected) = golden.try_floats("full_logits") else {
            continue;
        };
        seen += 1;
        close(case, &Runner::load(case).full(&golden.ids("input_ids")[..24]), &expected);
    }
    assert!(seen >= 12, "only {seen} architectures had bidirectional logits");
}

/// Law 1: bits do not depend on chunks, batches or where keys lie.
#[test]
fn rows_are_invariant_bitwise() {
    for case in CASES {
        let golden = Golden::open(case);
        let ids = golden.ids("input_ids");
        let (a, b) = ids.split_at(24);
        let whole = Runner::load(case).causal(a).logits;
        for chunk in [1, 5, 7, 23] {
            let mut runner = Runner::load(case);
            let pieces: Vec<f32> = a.chunks(chunk).flat_map(|ids| runner.causal(ids).logits).collect();
            assert!(pieces == whole, "{case}: chunks of {chunk}");
        }
        let other = Runner::load(case).causal(b).logits;
        let mut both = Runner::load(case);
        assert!(both.together(&[a, b]) == [whole.clone(), other].concat(), "{case}: two sequences in one step");
        // Rows that nobody reads do less in the last layer, and are remembered all the same.
        let (row, mut runner) = (whole.len() / 24, Runner::load(case));
        assert!(runner.last(&a[..20]).logits == whole[19 * row..20 * row], "{case}: the last of 20 is read");
        assert!(runner.last(&a[20..]).logits == whole[23 * row..], "{case}: behind rows that were not read");
        // The last rows as a chain in the tail.
        let mut runner = Runner::load(case);
        runner.causal(&a[..17]);
        let places: Vec<u32> = (17..24).collect();
        let sights: Vec<Vec<Visible>> =
            (0..7).map(|i| (0..=i).map(|j| Visible { place: 17 + j, slot: runner.tail() + j }).collect()).collect();
        assert!(runner.tail_rows(&a[17..], &places, 17, &sights) == whole[17 * row..], "{case}: tail");
    }
}

#[test]
fn greedy_tokens() {
    for case in CASES {
        let golden = Golden::open(case);
        let (ids, greedy) = (golden.ids("input_ids"), golden.ids("greedy"));
        for (prompt, whole) in ids.chunks(24).zip(greedy.chunks(40)) {
            assert_eq!(whole[..24], *prompt);
            let expected = &whole[24..];
            let mut runner = Runner::load(case);
            let mut next = runner.causal(prompt).argmax();
            let mut found = Vec::new();
            while found.len() < expected.len() {
                found.push(next);
                next = runner.causal(&[next]).argmax();
            }
            // transformers pads after an end token; compare up to it.
            let end = expected.iter().position(|&t| t == 2).map_or(expected.len(), |e| e + 1);
            assert_eq!(found[..end], expected[..end], "{case}");
        }
    }
}
