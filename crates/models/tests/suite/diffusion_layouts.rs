//! Tiny checkpoints in the layouts of LLaDA, LLaDA-MoE, Dream and SDAR (`tests/golden/diffusion.py`): their configurations
//! and tensor names, and logits under their own attention against transformers, in f32.

use crate::common::{Golden, Runner};
use omnidecode_models::Network;

const TOLERANCE: f32 = 1e-4;

#[test]
fn logits_under_their_own_attention() {
    for (case, block) in [("llada", None), ("llada-moe", None), ("dream", None), ("sdar", Some(4))] {
        let golden = Golden::open(case);
        let (ids, expected) = (golden.ids("input_ids"), golden.floats("logits"));
        let mut runner = Runner::load(case);
        let card = runner.decoder.card().clone();
        assert_eq!((card.bidirectional, card.block), (block.is_none(), block), "{case}");
        assert_eq!(card.shift, usize::from(case == "dream"), "{case}");
        assert_eq!((card.mask, &card.eos[..]), (Some(158), &[157][..]), "{case}");
        let found = match block {
            None => runner.full(&ids),
            // Each block sees itself and the blocks before it.
            Some(size) => ids.chunks(size).flat_map(|block| runner.joint(block)).collect(),
        };
        assert_eq!(found.len(), expected.len(), "{case}");
        let off = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(1.0);
        let worst = found.iter().zip(&expected).map(off).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE, "{case}: off by {worst}");
        // The order of places matters to none of these models but by their positions: the same ids elsewhere differ.
        let turned: Vec<u32> = ids.iter().rev().copied().collect();
        let other = Runner::load(case).full(&turned);
        let far = other.iter().zip(&expected).map(off).fold(0.0, f32::max);
        assert!(far > 100.0 * TOLERANCE, "{case}: the comparison would not notice another text");
    }
}
