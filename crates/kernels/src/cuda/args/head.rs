//! Arguments of the kernels of the head, and of what is done with its answers.
use super::{Address, Plain};

plain! {
    /// Arguments of `gather`.
    GatherArgs {
        /// Residual stream.
        x: Address,
        /// Pairs: row, place in `out`.
        from: Address,
        /// Where they go.
        out: Address,
        /// How many.
        count: Address,
        /// Width.
        width: u32,
        /// 0.
        reserved: u32,
    }
    /// What is asked of a row of logits.
    Ask {
        /// The word behind the noise's key.
        key: u64,
        /// 0: the largest.
        temperature: f32,
        /// Least share of the largest probability.
        min_p: f32,
        /// Mass of the fewest largest that may be chosen; 1: all.
        top_p: f32,
        /// How many of the largest may be chosen; 0: all.
        top_k: u32,
        /// How many of the largest are read.
        top: u32,
        /// First of the asked tokens.
        asked: u32,
        /// Behind the last.
        asked_end: u32,
        /// 1 choose, 2 statistics.
        flags: u32,
    }
    /// The peak of a piece of a row.
    Peak {
        /// Largest logit.
        max: f32,
        /// Second largest.
        second: f32,
        /// Token of the largest.
        id: u32,
        /// 0: NaN or +inf was there.
        sound: u32,
    }
    /// What was found in a row.
    Found {
        /// Token of the largest logit.
        argmax: u32,
        /// Largest logit.
        max: f32,
        /// Second largest.
        second: f32,
        /// Log of the sum of exponentials, where statistics were asked for.
        lse: f32,
        /// Entropy.
        entropy: f32,
        /// The choice.
        choice: u32,
        /// Log-probability of the choice.
        logprob: f32,
        /// 0 fine, 1 not finite, 2 nothing left.
        state: u32,
    }
    /// A token and its logit.
    Candidate {
        /// Token; [`NONE`]: the row has no more.
        id: u32,
        /// Logit.
        logit: f32,
    }
    /// What `pick` keeps of a piece.
    Piece {
        /// Sum of exponentials.
        sum: f64,
        /// Sum of y e^y.
        tilt: f64,
        /// Best time of the race.
        time: f64,
        /// Whose.
        id: u32,
        /// 0.
        reserved: u32,
    }
    /// Arguments of `peak` and `pick`.
    PickArgs {
        /// `[rows, vocab]`.
        logits: Address,
        /// What is asked of each row.
        asks: Address,
        /// Tokens whose log-probability is asked.
        asked: Address,
        /// How many rows.
        stand: Address,
        /// `[rows, pieces]`.
        peaks: Address,
        /// `[rows, pieces]`.
        pieces: Address,
        /// `[rows, pieces, TOP]`.
        candidates: Address,
        /// `[rows, TOP]`.
        tops: Address,
        /// Of the asked.
        logprobs: Address,
        /// `[rows]`.
        found: Address,
        /// `[rows]`: the last in order that may be chosen.
        edges: Address,
        /// A zero for each row.
        counters: Address,
        /// Tokens.
        vocab: u32,
        /// Pieces.
        count: u32,
    }
    /// Arguments of `verify`.
    VerifyArgs {
        /// Tokens of the nodes.
        tokens: Address,
        /// Parents of the nodes, [`NONE`] for the root.
        parents: Address,
        /// Of the root, then of the nodes.
        found: Address,
        /// How many nodes.
        nodes: Address,
        /// Length of the path, next token, path.
        verdict: Address,
    }
    /// Arguments of `accept`.
    AcceptArgs {
        /// The whole store.
        kv: Address,
        /// Pairs of slots: from, to.
        moves: Address,
        /// How many.
        count: Address,
        /// Head size.
        dim: u32,
        /// 0 f32, 1 f16, 2 bf16.
        dtype: u32,
        /// Pages of the store.
        pages: u32,
        /// 0.
        reserved: u32,
    }
}
