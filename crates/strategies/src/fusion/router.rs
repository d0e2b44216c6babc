//! The learned router of sheet 33: a support vector machine with a Gaussian kernel that says from the largest
//! probabilities of the small model whether the large one would disagree.
use serde::Deserialize;

/// f(x) = bias + sum of weight_i exp(-gamma |x - v_i|^2), x the `k` largest probabilities, descending; above 0 the large
/// model is asked. `omnidecode.router.train` makes one.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Width of the kernel.
    pub gamma: f64,
    /// Added to the sum.
    pub bias: f64,
    /// Support vectors: `[vectors][k]`.
    pub vectors: Vec<Vec<f64>>,
    /// A weight for each: positive ones speak for asking.
    pub weights: Vec<f64>,
}

impl Machine {
    /// Out of JSON.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(json: &str) -> Result<Machine, String> {
        let machine: Machine = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let k = machine.k();
        if k == 0 || machine.vectors.iter().any(|v| v.len() != k) {
            return Err("support vectors of several lengths, or none".into());
        }
        if machine.weights.len() != machine.vectors.len() {
            return Err(format!("{} weights for {} support vectors", machine.weights.len(), machine.vectors.len()));
        }
        let finite = |numbers: &[f64]| numbers.iter().all(|x| x.is_finite());
        let plain = finite(&[machine.bias]) && finite(&machine.weights) && machine.vectors.iter().all(|v| finite(v));
        if machine.gamma <= 0.0 || !machine.gamma.is_finite() || !plain {
            return Err("a gamma that is not positive, or numbers that are not finite".into());
        }
        Ok(machine)
    }
    /// Probabilities that it looks at.
    pub fn k(&self) -> usize {
        self.vectors.first().map_or(0, Vec::len)
    }
    /// Whether the large model should be asked; `law`: the small model's largest probabilities, descending.
    pub fn asks(&self, law: &[f64]) -> bool {
        let near = |v: &[f64]| {
            let apart = v.iter().enumerate().map(|(i, x)| (x - law.get(i).copied().unwrap_or(0.0)).powi(2));
            (-self.gamma * apart.sum::<f64>()).exp()
        };
        self.bias + self.vectors.iter().zip(&self.weights).map(|(v, w)| w * near(v)).sum::<f64>() > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_decide_by_the_nearest_vectors() {
        let json = r#"{"gamma": 8.0, "bias": 0.0, "vectors": [[0.9, 0.05], [0.3, 0.25]], "weights": [-1.0, 1.0]}"#;
        let machine = Machine::parse(json).expect("a machine");
        assert!(!machine.asks(&[0.95, 0.02]) && machine.asks(&[0.35, 0.3]));
        // exp(-8 * 0.5) on both sides: the middle is no reason to ask.
        assert!(!Machine { bias: -1e-9, ..machine.clone() }.asks(&[0.6, 0.15]));
        for bad in [
            "{",
            r#"{"gamma": 1, "bias": 0, "vectors": [], "weights": []}"#,
            r#"{"gamma": 1, "bias": 0, "vectors": [[1], [1, 2]], "weights": [1, 2]}"#,
            r#"{"gamma": 1, "bias": 0, "vectors": [[1]], "weights": [1, 2]}"#,
            r#"{"gamma": 0, "bias": 0, "vectors": [[1]], "weights": [1]}"#,
            r#"{"gamma": 1, "bias": 0, "vectors": [[1]], "weights": [1], "more": 1}"#,
        ] {
            assert!(Machine::parse(bad).is_err(), "{bad}");
        }
    }
}
