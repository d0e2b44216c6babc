//! The engine with its strategies on a GPU whose kernels the host runs: exact strategies give what plain decoding gives, and
//! what is left to the host is counted. Skipped, with a word on stderr, where there is no C++ compiler.
#![cfg(feature = "emulator")]
use omnidecode::{Device, Error, Guarantee, Llm, Options, Sampling, strategy};
use std::path::{Path, PathBuf};

/// A golden checkpoint with a tokenizer, which tests that give ids never use.
fn model(case: &str) -> tempfile::TempDir {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let place = tempfile::tempdir().expect("a folder");
    let copy = |from: &Path| {
        let to = place.path().join(from.file_name().expect("a name"));
        std::fs::copy(from, to).expect("in the repository");
    };
    copy(&root.join("tests/golden").join(case).join("config.json"));
    copy(&root.join("tests/golden").join(case).join("model.safetensors"));
    copy(&root.join("models/chains-ar/tokenizer.json"));
    place
}
fn open(case: &str, row_invariant: bool) -> Option<Llm> {
    let place = model(case);
    match Llm::builder(place.path()).device(Device::Emulated).row_invariant(row_invariant).context(128).open() {
        Ok(llm) => Some(llm),
        Err(Error::Model(e)) if e.to_string().contains("C++ compiler") => None,
        Err(e) => panic!("{case}: {e}"),
    }
}

fn ids(salt: u32) -> Vec<u32> {
    (0..20).map(|i| 3 + (i * i * 7 + salt * 31) % 150).collect()
}
/// Tokens of each prompt, greedy and at temperature 1, all in one batch.
fn decode(llm: &Llm, name: &str) -> Result<Vec<Vec<u32>>, Error> {
    let ask = |i: u32| {
        let temperature = if i < 2 { 0.0 } else { 1.0 };
        let sampling =
            Sampling { max_tokens: Some(10), temperature, seed: u64::from(i), ignore_eos: true, ..Sampling::default() };
        // Cut by number and by mass, too.
        let sampling = if i == 3 { Sampling { top_k: 40, top_p: 0.7, ..sampling } } else { sampling };
        let strategy = strategy(name, &Options::new())?;
        Ok(llm.submit(llm.request_with(ids(i % 2), strategy, sampling, true)?))
    };
    let handles: Vec<_> = (0..4).map(ask).collect::<Result<_, Error>>()?;
    handles
        .into_iter()
        .map(|handle| {
            let answer = handle.collect();
            answer.end.map(|_| answer.delta.tokens).map_err(Error::from)
        })
        .collect()
}

#[test]
fn exact_strategies_give_what_plain_gives() {
    for (case, most) in [("llama", usize::MAX), ("qwen3-moe", 2)] {
        let Some(llm) = open(case, true) else { return };
        let plain = decode(&llm, "plain").expect("plain decoding");
        let cpu = Llm::builder(model(case).path()).threads(1).context(128).open().expect("opens");
        assert_eq!(decode(&cpu, "plain").expect("plain decoding"), plain, "{case}: as on the processor");
        let exact = omnidecode::strategies::ALL
            .iter()
            .filter(|entry| entry.card.guarantee == Guarantee::Exact && entry.card.needs.is_empty());
        let mut ran = 0;
        for entry in exact.filter(|entry| entry.card.name != "plain").take(most) {
            // Some want another kind of model, or parameters: they say so on the processor too.
            if decode(&cpu, entry.card.name).is_err() {
                continue;
            }
            let found = decode(&llm, entry.card.name).unwrap_or_else(|e| panic!("{case}: {}: {e}", entry.card.name));
            assert_eq!(found, plain, "{case}: {}", entry.card.name);
            ran += 1;
        }
        assert!(ran >= most.min(3), "{case}: {ran} strategies ran");
        assert_eq!(llm.stats().host_rows, 0, "{case}: nothing was left to the host");
    }
}

#[test]
fn what_is_left_to_the_host_is_counted_and_the_faster_mode_says_what_it_is() {
    let Some(llm) = open("llama", false) else { return };
    let sampling = Sampling { max_tokens: Some(3), temperature: 1.0, typical_p: 0.5, ..Sampling::default() };
    let answer = llm.submit(llm.request(ids(0), "plain", &Options::new(), sampling).expect("a request")).collect();
    assert_eq!(answer.end.expect("it ends").guarantee, Guarantee::Approximate);
    assert_eq!(llm.stats().host_rows, 3, "typical mass is cut on the host");
    let refused = Llm::builder(model("llama").path()).row_invariant(false).open();
    assert!(matches!(refused, Err(Error::Model(e)) if e.to_string().contains("row_invariant")));
}
