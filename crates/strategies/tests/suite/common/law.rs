//! Law 2: what strategies emit on the table networks, four tokens allowed, against full enumeration of three tokens.
use crate::common::config;
use omnidecode_engine::testing::{Bench, networks};
use omnidecode_engine::{Guarantee, NamedNetwork, Readout, Request, Sampling, Strategy, Token};
use std::sync::mpsc::channel;

const ALLOWED: [Token; 4] = [5, 9, 20, 33];
const DEPTH: usize = 3;
/// Requests of one simulation.
pub const RUNS: usize = 6_000;

/// The prompt of every run.
pub const PROMPT: [Token; 3] = [3, 1, 4];

/// Warm enough that nothing is certain.
pub fn sampling(seed: u64) -> Sampling {
    Sampling {
        temperature: 3.0,
        seed,
        max_tokens: Some(6),
        allowed_token_ids: Some(ALLOWED.to_vec()),
        ignore_eos: true,
        ..Sampling::default()
    }
}

fn code(tokens: &[Token]) -> usize {
    let digit = |t: &Token| ALLOWED.iter().position(|a| a == t).expect("only allowed tokens are emitted");
    tokens.iter().fold(0, |c, t| c * ALLOWED.len() + digit(t))
}

/// The target's law after a context, as the engine gives it.
fn law_after(context: &[Token], networks: Vec<NamedNetwork>, ride: &impl Fn(&mut Request)) -> Vec<f64> {
    let (sender, receiver) = channel();
    let probe = Strategy::new("probe", Guarantee::Exact, move |mut seq| async move {
        let seen = seq.next(Readout::LOGITS).await?;
        let law = seq.warp().law(seen.root().logits());
        let _ = sender.send(ALLOWED.map(|t| f64::from(law[t as usize])).to_vec());
        Ok(())
    });
    let mut bench = Bench::new(config(), networks).expect("starts");
    let prompt: Vec<Token> = PROMPT.iter().chain(context).copied().collect();
    let mut request = Request::new(prompt, probe, sampling(0));
    ride(&mut request);
    let handle = bench.submit(request);
    bench.run();
    drop(handle);
    receiver.recv().expect("a law")
}

/// Probabilities of all texts of DEPTH tokens.
fn enumerated(networks: &impl Fn() -> Vec<NamedNetwork>, ride: &impl Fn(&mut Request)) -> Vec<f64> {
    let mut texts: Vec<(Vec<Token>, f64)> = vec![(Vec::new(), 1.0)];
    for _ in 0..DEPTH {
        let mut longer = Vec::new();
        for (text, p) in texts {
            for (token, q) in ALLOWED.iter().zip(law_after(&text, networks(), ride)) {
                longer.push((text.iter().copied().chain([*token]).collect(), p * q));
            }
        }
        texts = longer;
    }
    let mut law = vec![0.0; texts.len()];
    texts.iter().for_each(|(text, p)| law[code(text)] = *p);
    law
}

/// (total variation, chi-square per degree of freedom) of the first three tokens.
fn simulate(
    networks: impl Fn() -> Vec<NamedNetwork>,
    make: impl Fn() -> Strategy,
    expected: impl Fn(&mut Request),
    ride: impl Fn(&mut Request),
) -> (f64, f64) {
    let exact = enumerated(&networks, &expected);
    let mut counts = vec![0.0; exact.len()];
    let mut bench = Bench::new(config(), networks()).expect("starts");
    for batch in 0..RUNS / 500 {
        let seeds = batch * 500..(batch + 1) * 500;
        let ask = |s: usize| {
            let mut request = Request::new(PROMPT.to_vec(), make(), sampling(s as u64));
            ride(&mut request);
            bench.submit(request)
        };
        let handles: Vec<_> = seeds.map(ask).collect();
        bench.run();
        for handle in handles {
            let answer = handle.collect();
            assert!(answer.end.is_ok(), "{:?}", answer.end);
            assert_eq!(answer.delta.tokens.len(), 6);
            counts[code(&answer.delta.tokens[..DEPTH])] += 1.0;
        }
    }
    let n = RUNS as f64;
    let tv = 0.5 * exact.iter().zip(&counts).map(|(e, c)| (e - c / n).abs()).sum::<f64>();
    let cells: Vec<_> = exact.iter().zip(&counts).filter(|(e, _)| **e * n >= 5.0).collect();
    assert!(cells.len() > 30, "the law is too narrow to test anything: {} cells", cells.len());
    let chi: f64 = cells.iter().map(|(e, c)| (*c - *e * n).powi(2) / (*e * n)).sum();
    (tv, chi / (cells.len() - 1) as f64)
}

/// 60 cells: 1.7 is 3.8 standard deviations above 1.
pub fn case(name: &str, must_hold: bool, make: impl Fn() -> Strategy) {
    case_with(name, must_hold, networks, make, |_| {}, |_| {});
}
/// On these networks, with companions that make the law and companions that ride along.
pub fn case_with(
    name: &str,
    must_hold: bool,
    networks: impl Fn() -> Vec<NamedNetwork>,
    make: impl Fn() -> Strategy,
    expected: impl Fn(&mut Request),
    ride: impl Fn(&mut Request),
) {
    let (tv, chi) = simulate(networks, make, expected, ride);
    println!("{name}: TV {tv:.4}, chi2/df {chi:.2}");
    assert_eq!(chi < 1.7, must_hold, "{name}: TV {tv:.4}, chi2/df {chi:.2}");
}
