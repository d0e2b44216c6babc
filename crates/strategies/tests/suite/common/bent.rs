//! Requests with companions, on the table networks and on a golden checkpoint.
use omnidecode_engine::testing::Bench;
use omnidecode_engine::{
    Config, Edits, Guarantee, ModelCard, NamedNetwork, Plan, Readout, Request, Rows, Sampling, Strategy, Token,
};
use omnidecode_models::Weights;
use omnidecode_models::decoder::{Decoder, Options as Loading};
use omnidecode_strategies::companions::{self, CompanionError, Context, Vocabulary};
use omnidecode_strategies::params::Options;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// What the tokens of the table networks stand for: 1 to 62 are pieces that JSON can be made of, 0 ends, 63 is a mask.
pub struct Pieces;
const WORDS: &str = "0 1 2 3 4 5 6 7 8 9 a b c d e f n o r s t l m g u { } [ ] \" : , - . true false null \": \", {\" \
                     \"} name size tags ab ba 10 42 }, [\" \"] ok no red green i yes al e1 x é z";
impl Vocabulary for Pieces {
    fn len(&self) -> usize {
        64
    }
    fn bytes(&self, token: Token) -> Option<Vec<u8>> {
        let at = (token as usize).checked_sub(1)?;
        WORDS.split(' ').nth(at).map(|w| w.as_bytes().to_vec())
    }
    fn encode(&self, text: &str) -> Vec<Token> {
        let mut left = text.as_bytes();
        let mut tokens = Vec::new();
        while !left.is_empty() {
            let fits = (1..63).filter_map(|t| Some((t, self.bytes(t)?))).filter(|(_, w)| left.starts_with(w));
            let (token, word) = fits.max_by_key(|(_, w)| w.len()).expect("text made of the pieces");
            tokens.push(token);
            left = &left[word.len()..];
        }
        tokens
    }
}
/// The text of an answer, its end left out.
pub fn text(tokens: &[Token]) -> String {
    let bytes: Vec<u8> = tokens.iter().filter_map(|&t| Pieces.bytes(t)).flatten().collect();
    String::from_utf8(bytes).expect("pieces are whole characters")
}

/// Facts of the table networks' main model.
pub fn card() -> ModelCard {
    omnidecode_engine::testing::networks()[0].network.card().clone()
}

/// Attach a companion to a request for the table networks.
pub fn attach(name: &str, params: &Options, prompt: &[Token], request: &mut Request) -> Result<(), CompanionError> {
    let vocabulary: Option<Arc<dyn Vocabulary>> = Some(Arc::new(Pieces));
    companions::attach(name, params, &Context { card: &card(), prompt, vocabulary }, request)
}

/// A checkpoint of `tests/golden`.
pub fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}
pub fn golden(case: &str) -> Decoder {
    let weights = Weights::open(folder(case)).expect("the golden folder is in the repository");
    Decoder::load(&weights, &Loading { threads: Some(1), ..Loading::default() }).expect("loads")
}

/// What was read at one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    pub logits: Vec<f32>,
    pub hidden: Vec<f32>,
    pub mass: Vec<f32>,
}

/// Run `prompt` in one forward and each token of `rest` in one of its own; read everywhere.
pub fn read(case: &str, edits: Option<Edits>, prompt: &[Token], rest: &[Token], read: &Readout) -> Vec<Place> {
    read_with(case, edits, prompt, rest, read, false)
}
/// As [`read`]; `crowd`: beside another request without edits.
pub fn read_with(
    case: &str,
    edits: Option<Edits>,
    prompt: &[Token],
    rest: &[Token],
    read: &Readout,
    crowd: bool,
) -> Vec<Place> {
    let (sender, receiver) = channel();
    let (rest, read) = (rest.to_vec(), read.clone());
    let probe = Strategy::new("probe", Guarantee::Approximate, move |mut seq| async move {
        let place = |seen: omnidecode_engine::Seen<'_>| Place {
            logits: if read.logits { seen.logits().to_vec() } else { Vec::new() },
            hidden: seen.hidden().to_vec(),
            mass: if read.mass.is_empty() { Vec::new() } else { seen.mass().to_vec() },
        };
        let seen = seq.forward(Plan::next(read.clone()).at_rows(Rows::All)).await?;
        let mut places: Vec<Place> = seen.places().filter_map(|p| seen.place(p).map(&place)).collect();
        for token in rest {
            seq.push(token)?;
            places.push(place(seq.next(read.clone()).await?.root()));
        }
        let _ = sender.send(places);
        Ok(())
    });
    let sampling = Sampling { max_tokens: Some(64), ignore_eos: true, ..Sampling::default() };
    let mut request = Request::new(prompt.to_vec(), probe, sampling.clone());
    request.edits = edits.map(Arc::new);
    let mut bench = Bench::new(
        Config { pages: 64, tail: 64, ..Config::default() },
        vec![NamedNetwork::new("main", Box::new(golden(case)))],
    )
    .expect("starts");
    let plain = || omnidecode_strategies::strategy("plain", &Options::new()).expect("plain");
    let other = crowd.then(|| {
        let longer: Vec<Token> = prompt.iter().chain(prompt).copied().collect();
        bench.submit(Request::new(longer, plain(), sampling))
    });
    let handle = bench.submit(request);
    bench.run();
    let end = handle.collect().end;
    drop(other);
    receiver.recv().unwrap_or_else(|_| panic!("the probe failed: {end:?}"))
}
