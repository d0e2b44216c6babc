//! Adapters: a norm and attention behind a layer of another model, whose head they use.

use crate::common::{folder, write_adapter as write};
use omnidecode_models::decoder::{Decoder, Options};
use omnidecode_models::{Network, Weights};
use serde_json::json;

#[test]
fn an_adapter_loads_beside_its_model_only() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    write(at, |_| {});
    let options = Options { threads: Some(1), ..Options::default() };
    let main = Decoder::load(&Weights::open(folder("llama")).expect("golden"), &options).expect("loads");
    let weights = Weights::open(at).expect("opens");
    let adapter = Decoder::load_adapter(&weights, &main, &options).expect("fits");
    let card = adapter.card();
    assert_eq!((card.exit_layer, card.layers, card.hidden, card.vocab), (Some(2), 1, 64, 320));
    assert!(card.bytes > 0 && card.bytes < main.card().bytes);
    assert!(Decoder::load(&weights, &options).err().expect("no model").to_string().contains("adapter"));
    let whole = Weights::open(folder("llama")).expect("golden");
    assert!(Decoder::load_adapter(&whole, &main, &options).is_err(), "a whole model is no adapter");
    for (key, value) in [("exit_layer", json!(3)), ("vocab_size", json!(321))] {
        write(at, |config| config[key] = value.clone());
        let weights = Weights::open(at).expect("opens");
        assert!(Decoder::load_adapter(&weights, &main, &options).is_err(), "{key} does not fit");
    }
    write(at, |config| config["hidden_size"] = json!(32));
    assert!(Weights::open(at).is_err() || Decoder::load_adapter(&Weights::open(at).unwrap(), &main, &options).is_err());
}
