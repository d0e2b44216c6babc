//! Facts as JSON, for the faces that speak it: Python, the shell, HTTP.
use crate::llm::Llm;
use omnidecode_models::ModelCard;
use omnidecode_models::decoder::{Tier, default_threads};
use serde_json::{Map, Value, json};

impl Llm {
    /// The model card, and whether there is a chat template.
    pub fn card_json(&self) -> Value {
        let mut card = card_json(self.card());
        card["chat_template"] = self.template().is_some().into();
        card
    }

    /// The author's sampling defaults in transformers' names; `None` when nothing is said.
    pub fn generation_json(&self) -> Option<Value> {
        let config = self.generation_config();
        let mut said = Map::new();
        let mut say = |name: &str, value: Option<Value>| value.map(|value| said.insert(name.into(), value));
        // Through text, so that 0.6 in f32 does not become 0.60000002384185791.
        let number =
            |value: Option<f32>| value.and_then(|value| value.to_string().parse::<f64>().ok()).map(Value::from);
        say("do_sample", config.do_sample.map(Value::from));
        say("temperature", number(config.temperature));
        say("top_p", number(config.top_p));
        say("top_k", config.top_k.map(Value::from));
        say("min_p", number(config.min_p));
        say("typical_p", number(config.typical_p));
        say("repetition_penalty", number(config.repetition_penalty));
        say("max_new_tokens", config.max_new_tokens.map(Value::from));
        (!said.is_empty()).then_some(Value::Object(said))
    }
    /// What the engine did since it started.
    pub fn stats_json(&self) -> Value {
        let stats = self.stats();
        json!({
            "steps": stats.steps,
            "forwards": stats.forwards,
            "plans": stats.plans,
            "rows": stats.rows,
            "evictions": stats.evictions,
            "polls": stats.polls,
            "host_rows": stats.host_rows,
            "library_products": stats.library_products,
            "network_seconds": stats.network_ns as f64 / 1e9,
            "turn_seconds": stats.turn_ns as f64 / 1e9,
            "rest_seconds": stats.rest_ns as f64 / 1e9,
            "running": stats.running,
            "waiting": stats.waiting,
            "pages_used": stats.pages_used,
            "tail_used": stats.tail_used,
            "prefix_hits": stats.prefix_hits,
        })
    }
}

/// The facts of a model.
pub fn card_json(card: &ModelCard) -> Value {
    json!({
        "vocab": card.vocab,
        "hidden": card.hidden,
        "layers": card.layers,
        "heads": card.heads,
        "kv_heads": card.kv_heads,
        "context": card.context,
        "intermediate": card.intermediate,
        "bos": card.bos,
        "eos": card.eos,
        "mask": card.mask,
        "pad": card.pad,
        "shift": card.shift,
        "bidirectional": card.bidirectional,
        "block": card.block,
        "bytes": card.bytes,
        "parameters": card.parameters,
    })
}

/// The processor features that the kernels use here, and the threads that they would use.
pub fn machine_json() -> Value {
    json!({ "kernels": Tier::current().name(), "threads": default_threads() })
}

/// The registry of strategies: a list of {name, guarantee, needs, summary, source, parameters}.
pub fn registry_json() -> Value {
    omnidecode_strategies::ALL.iter().map(omnidecode_strategies::Entry::describe).collect()
}

/// The registry of companions: a list of {name, bends, summary, source, parameters}.
pub fn companions_json() -> Value {
    omnidecode_strategies::companions::ALL
        .iter()
        .map(omnidecode_strategies::companions::CompanionEntry::describe)
        .collect()
}
