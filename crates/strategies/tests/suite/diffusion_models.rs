//! The diffusion loops on the small trained checkpoints: equal to dense forwards, as accurate as their cards say, in
//! fewer forwards. Run without capture for the figures, and with OMNIDECODE_TASKS=300 for finer ones.

use crate::common::canvas::{Dense, Ran, Spot, best, checkpoint, decode, naive, plainly, share};
use omnidecode_engine::{Answer, Sampling, Token};
use omnidecode_models::Network;
use serde_json::{Value, json};

const BOS: Token = 3;

/// Text as these models have it: a character a token, printable ASCII from 9 on.
fn ids(text: &str) -> Vec<Token> {
    text.bytes().map(|b| Token::from(b) - 23).collect()
}
fn text(tokens: &[Token]) -> String {
    tokens.iter().take_while(|t| **t > 8).map(|&t| char::from(t as u8 + 23)).collect()
}
fn draw(word: &mut u64, n: usize) -> usize {
    *word = omnidecode_core::noise::mix(*word);
    (*word % n as u64) as usize
}

/// All 4x4 grids in which rows, columns and boxes hold every digit once.
fn grids() -> Vec<[u8; 16]> {
    fn fill(grid: &mut [u8; 16], at: usize, all: &mut Vec<[u8; 16]>) {
        if at == 16 {
            return all.push(*grid);
        }
        let (row, column) = (at / 4, at % 4);
        for digit in 1..=4 {
            let clash = |&i: &usize| {
                let (r, c) = (i / 4, i % 4);
                grid[i] == digit && (r == row || c == column || (r / 2 == row / 2 && c / 2 == column / 2))
            };
            if !(0..at).any(|i| clash(&i)) {
                grid[at] = digit;
                fill(grid, at + 1, all);
            }
        }
        grid[at] = 0;
    }
    let mut all = Vec::new();
    fill(&mut [0; 16], 0, &mut all);
    all
}
/// Puzzles with one solution and 4 to 12 empty cells, with their solutions.
fn puzzles(count: usize) -> Vec<(Vec<Token>, String)> {
    let (grids, mut word, mut out) = (grids(), 5, Vec::new());
    assert_eq!(grids.len(), 288);
    while out.len() < count {
        let grid = grids[draw(&mut word, 288)];
        let mut puzzle = grid;
        for _ in 0..4 + draw(&mut word, 9) {
            puzzle[draw(&mut word, 16)] = 0;
        }
        let fits = |g: &&[u8; 16]| (0..16).all(|i| puzzle[i] == 0 || puzzle[i] == g[i]);
        if grids.iter().filter(fits).count() == 1 {
            let digits = |g: &[u8; 16]| g.iter().map(|d| char::from(b'0' + d)).collect::<String>();
            let mut prompt = vec![BOS];
            prompt.extend(ids(&(digits(&puzzle) + "=")));
            out.push((prompt, digits(&grid)));
        }
    }
    out
}
/// Running totals: `3+4-2;` is answered `3>7>5;`, filled up with dots to 62 characters.
fn chains(count: usize) -> Vec<(Vec<Token>, String)> {
    let mut word = 77;
    (0..count)
        .map(|_| {
            let (mut question, mut answer) = (String::new(), String::new());
            loop {
                let mut total = draw(&mut word, 10) as i32;
                let (mut line, mut totals) = (total.to_string(), total.to_string());
                for _ in 0..1 + draw(&mut word, 6) {
                    let up = total == 0 || (total < 9 && draw(&mut word, 2) == 0);
                    let by = 1 + draw(&mut word, if up { 9 - total } else { total } as usize) as i32;
                    total += if up { by } else { -by };
                    line += &format!("{}{by}", if up { '+' } else { '-' });
                    totals += &format!(">{total}");
                }
                if !question.is_empty() && question.len() + line.len() + 1 > 44 {
                    break;
                }
                question += &(line + ";");
                answer += &(totals + ";");
            }
            let mut prompt = vec![BOS];
            prompt.extend(ids(&format!("{question:.<62}=")));
            (prompt, answer)
        })
        .collect()
}

/// How many tasks the figures are of.
fn count() -> usize {
    std::env::var("OMNIDECODE_TASKS").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

struct Score {
    exact: f64,
    nfe: f64,
    per_forward: f64,
}
fn score(model: &str, name: &str, params: &Value, tasks: &[(Vec<Token>, String)], sampling: &Sampling) -> Score {
    let asks: Vec<_> = tasks.iter().map(|t| (t.0.clone(), sampling.clone())).collect();
    let options = params.as_object().expect("an object");
    let answers = decode(Box::new(checkpoint(model)), name, options, &asks);
    let right = answers.iter().zip(tasks).filter(|(a, t)| text(&a.delta.tokens) == t.1).count();
    let nfe: usize = answers.iter().map(nfe).sum();
    let tokens: usize = answers.iter().map(|a| a.delta.tokens.len()).sum();
    let count = tasks.len() as f64;
    let score =
        Score { exact: 100.0 * right as f64 / count, nfe: nfe as f64 / count, per_forward: tokens as f64 / nfe as f64 };
    println!("{model} {name} {params}: {:.1} % exact, NFE {:.2}, TPF {:.2}", score.exact, score.nfe, score.per_forward);
    score
}
fn nfe(answer: &Answer) -> usize {
    answer.end.as_ref().unwrap_or_else(|e| panic!("{e}")).usage.nfe
}

/// Each loop on a trained model against dense forwards: the same tokens, decided in the same forwards.
#[test]
fn trained_models_are_the_loops_written_out() {
    let mut dense = Dense::new(Box::new(checkpoint("models/sudoku-diffusion")));
    for (prompt, _) in &puzzles(12) {
        for cache in ["none", "prefix", "dual", "delayed"] {
            let steady = |spots: &[Spot], j: usize, masks: usize| -> Vec<(usize, Token)> {
                let n = share(masks, masks.div_ceil(2), j);
                best(spots, Spot::prob).into_iter().take(n).map(|i| (i, spots[i].token())).collect()
            };
            let expected = naive(&mut dense, prompt, 16, 8, cache, steady);
            let params = json!({"block": 8, "steps": 8, "cache": cache});
            let ask = [(prompt.clone(), plainly(16))];
            let options = params.as_object().expect("an object");
            let seen = decode(Box::new(checkpoint("models/sudoku-diffusion")), "llada", options, &ask);
            let seen = Ran::of(&seen[0]);
            // Confidences within a rounding of 1 may change places in the order, so `when` is not compared.
            assert_eq!((seen.tokens, seen.forwards), (expected.tokens, expected.forwards), "{params}");
        }
    }
    let mut dense = Dense::new(Box::new(checkpoint("models/chains-block")));
    let block = checkpoint("models/chains-block").card().block.expect("block-causal");
    for (prompt, _) in &chains(4) {
        assert_eq!(prompt.len() % block, 0, "the loop below begins at a block");
        let one = |spots: &[Spot], _: usize, _: usize| vec![(best(spots, Spot::prob)[0], 0)];
        let one = |spots: &[Spot], j: usize, m: usize| -> Vec<(usize, Token)> {
            one(spots, j, m).into_iter().map(|(i, _)| (i, spots[i].token())).collect()
        };
        let expected = naive(&mut dense, prompt, 32, block, "none", one);
        let ask = [(prompt.clone(), plainly(32))];
        let empty = serde_json::Map::new();
        for name in ["sdar", "freedave"] {
            let seen = decode(Box::new(checkpoint("models/chains-block")), name, &empty, &ask);
            assert_eq!(seen[0].delta.tokens, expected.tokens, "{name}");
            assert!(nfe(&seen[0]) < expected.forwards + 32 / block, "stored blocks are the only forwards more");
        }
    }
}

/// Sudoku: accuracy and forwards of each unmasker, and FreeDave's identity with the static loop.
#[test]
fn sudoku() {
    let (model, tasks) = ("models/sudoku-diffusion", puzzles(count()));
    let go = |name: &str, params: Value| score(model, name, &params, &tasks, &plainly(16));
    let fixed = go("llada", json!({}));
    assert!(fixed.exact >= 97.0 && fixed.nfe == 16.0);
    go("llada", json!({"steps": 8}));
    let blind = go("llada", json!({"steps": 2}));
    assert!(blind.exact < fixed.exact, "blind parallelism costs accuracy");
    go("llada", json!({"order": "random"}));
    let sure = go("llada", json!({"unmasker": "threshold"}));
    assert!(sure.nfe < 4.0 && sure.exact >= 80.0);
    for threshold in [0.7, 0.99] {
        go("llada", json!({"unmasker": "threshold", "threshold": threshold}));
    }
    for params in [
        json!({"unmasker": "factor", "factor": 0.5}),
        json!({"unmasker": "entropy", "entropy_bound": 0.1}),
        json!({"unmasker": "localleap"}),
        json!({"unmasker": "credit"}),
        json!({"unmasker": "prophet"}),
        json!({"block": 8, "unmasker": "threshold", "cache": "dual"}),
        json!({"block": 8, "unmasker": "threshold", "cache": "prefix"}),
        json!({"cache": "delayed"}),
        json!({"guidance": 0.5}),
    ] {
        let seen = go("llada", params.clone());
        assert!(seen.exact >= 70.0 && seen.nfe <= 32.0, "{params}");
    }
    go("dream", json!({}));
    go("dream", json!({"order": "entropy", "steps": 8}));
    let mut before = 16.0;
    for drafts in [1, 2, 4, 8, 16] {
        let seen = go("freedave", json!({"drafts": drafts}));
        assert!(seen.exact == fixed.exact && seen.nfe <= 16.0, "the static loop's answers");
        before = seen.nfe.min(before);
    }
    assert!(before < 10.0, "and fewer forwards: {before}");
}

/// Running totals: blocks that end with `<eos>`, on the full and the block-causal model.
#[test]
fn running_totals() {
    let tasks = chains(count().min(40));
    let sampling = Sampling { max_tokens: Some(64), ..Sampling::default() };
    for (model, name) in [("models/chains-diffusion", "llada"), ("models/chains-block", "sdar")] {
        let block = if name == "llada" { json!(16) } else { Value::Null };
        let go = |name: &str, mut params: Value| {
            if name == "llada" || (name == "freedave" && !block.is_null()) {
                params["block"] = block.clone();
            }
            score(model, name, &params, &tasks, &sampling)
        };
        let fixed = go(name, json!({}));
        assert!(fixed.exact >= 90.0, "{model}");
        let sure = go(name, json!({"unmasker": "threshold", "threshold": 0.9}));
        assert!(sure.nfe < fixed.nfe / 2.0, "{model}");
        for unmasker in ["factor", "entropy", "localleap", "credit"] {
            go(name, json!({"unmasker": unmasker}));
        }
        if name == "llada" {
            go(name, json!({"unmasker": "threshold", "cache": "dual"}));
            go(name, json!({"unmasker": "threshold", "cache": "prefix"}));
            go(name, json!({"cache": "dual"}));
            go(name, json!({"cache": "delayed"}));
            go(name, json!({"unmasker": "prophet"}));
        }
        let drafts = go("freedave", json!({}));
        assert!(drafts.exact == fixed.exact && drafts.nfe < fixed.nfe, "{model}");
    }
}
