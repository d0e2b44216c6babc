//! Parameters that searches have in common.

/// Parameters of a search with a judge: its own, and which judge.
macro_rules! judged {
    ($($own:tt)*) => {
        $crate::params! {
            $($own)*
            /// Who scores: `auto` (the request's judge if it has one, else `confidence`), `request`, `confidence` (the mean
            /// probability that the model gave its own tokens), `model` (the one with the role `judge`), `regex`, `countdown`.
            judge: String = "auto".into(), one_of "auto", "request", "confidence", "model", "regex", "countdown";
            /// For `regex`: 1 for a text that it matches, else 0.
            judge_pattern: String = String::new();
            /// For `model`: tokens behind the text, at the last of which the verdict is read (a tag).
            judge_suffix: Vec<usize> = Vec::new();
            /// For `model`: the token of a good verdict.
            judge_good: Option<usize> = None;
            /// For `model`: the token of a bad verdict, which the good one is weighed against; null weighs it against all.
            judge_bad: Option<usize> = None;
            /// Share of the scores that noise takes the place of, the same for the same text and seed.
            judge_noise: f64 = 0.0, within 0.0, 1.0;
        }
        impl Params {
            fn judge_settings(&self) -> $crate::search::judging::Settings {
                $crate::search::judging::Settings {
                    judge: self.judge.clone(),
                    pattern: self.judge_pattern.clone(),
                    suffix: self.judge_suffix.clone(),
                    good: self.judge_good,
                    bad: self.judge_bad,
                    noise: self.judge_noise,
                }
            }
        }
    };
}

/// Parameters of a judged search that goes step by step.
macro_rules! stepped {
    ($($own:tt)*) => {
        $crate::search::settings::judged! {
            $($own)*
            /// Text that ends a step; empty for none.
            boundary: String = "\n\n".into();
            /// Tokens that end a step.
            boundary_tokens: Vec<usize> = Vec::new();
            /// Most tokens of a step.
            step_tokens: usize = 1024, within 1.0, 65536.0;
            /// Most steps of a text.
            depth: usize = 40, within 1.0, 65536.0;
            /// What the scores of the steps of a text are worth together: the `last`, the `min`, or the product, `prod`.
            aggregate: String = "last".into(), one_of "last", "min", "prod";
        }
        impl Params {
            fn step(&self) -> $crate::search::branch::Boundary {
                $crate::search::branch::Boundary {
                    text: self.boundary.clone(),
                    tokens: self.boundary_tokens.iter().map(|&t| t as omnidecode_engine::Token).collect(),
                    most: self.step_tokens,
                }
            }
            fn worth(&self, branch: &$crate::search::branch::Branch) -> f64 {
                $crate::search::judging::aggregate(&self.aggregate, &branch.scores)
            }
        }
    };
}
pub(crate) use {judged, stepped};
