//! Feature neurons (arXiv:2501.02688, sheet 42): rows of the feed-forward products live in the space of the residual
//! stream, so that the head turns each into a law over tokens. Which neuron stands for what is read off the weights.
use crate::config::NormKind;
use crate::error::{ModelError, Result};
use crate::files::{Field, Part, Tensor, Weights};
use omnidecode_core::Token;
use omnidecode_core::noise::{mix, pair};
use omnidecode_kernels::activations::{Activations, Forms};
use omnidecode_kernels::dtype::{Dtype, dequantize};
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::pick;
use omnidecode_kernels::pool::{Pool, default_threads};
use omnidecode_kernels::product::{Job, product};
use std::sync::Mutex;

/// Which vectors are read, and how they are scaled first. The default is the paper's: rows of the up-projection, as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// [`Part::Up`] or [`Part::Gate`] rows, which read from the stream, or [`Part::Down`] columns, which write to it.
    pub part: Part,
    /// Read the opposite direction.
    pub negative: bool,
    /// Multiply by the gain of the norm that the neuron reads through.
    pub fold_input: bool,
    /// Multiply by the gain of the last norm.
    pub fold_output: bool,
    /// Scale to this length; `None` leaves the length.
    pub length: Option<f32>,
    /// Divide each logit by the length of the token's row of the head, so that frequent tokens have no advantage.
    pub cosine: bool,
    /// A control: put random directions of the same lengths in the place of the neurons.
    pub random: Option<u64>,
}
impl Default for View {
    fn default() -> Self {
        View {
            part: Part::Up,
            negative: false,
            fold_input: false,
            fold_output: false,
            length: None,
            cosine: false,
            random: None,
        }
    }
}

/// What the head says of every neuron of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// By neuron, its likeliest tokens: `[neurons, top]`, ties to the lower id.
    pub tokens: Vec<Token>,
    /// Their probabilities: `[neurons, top]`.
    pub probabilities: Vec<f32>,
    /// Entropy in nats: `[neurons]`.
    pub entropy: Vec<f32>,
    /// Log of the sum over the vocabulary, with which probabilities of further tokens are found: `[neurons]`.
    pub lse: Vec<f32>,
}

/// The weights that neurons are read with.
pub struct Neurons<'a> {
    weights: &'a Weights,
    view: View,
    pool: Pool,
    head: Matrix,
    /// 1 / length of each row of the head: `[vocab]`, where logits are cosines.
    scales: Option<Vec<f32>>,
}

/// Neurons whose logits are in memory at once.
pub const CHUNK: usize = 64;

impl<'a> Neurons<'a> {
    /// Unpack the head.
    ///
    /// # Errors
    /// [`ModelError`] when a tensor is missing, or the model has no dense feed-forward part of this kind.
    pub fn open(weights: &'a Weights, view: View, threads: Option<usize>) -> Result<Neurons<'a>> {
        let config = weights.config();
        let dense = config.intermediate > 0 && !config.layers.iter().any(|l| config.experts.is_some() && l.sparse);
        if !dense || !matches!(view.part, Part::Up | Part::Gate | Part::Down) {
            let found = format!("{:?} of {}", view.part, config.architecture);
            return Err(ModelError::unsupported("up, gate or down products of dense feed-forward layers", found));
        }
        if view.part == Part::Gate && !config.gated {
            return Err(ModelError::unsupported("a gated feed-forward part", config.architecture.clone()));
        }
        let pool = Pool::new(threads.unwrap_or_else(default_threads));
        let (rows, columns, values) = floats(&need(weights, None, Part::Output)?)?;
        let scales = view.cosine.then(|| {
            values.chunks_exact(columns).map(|row| 1.0 / length(row).max(f32::MIN_POSITIVE)).collect::<Vec<f32>>()
        });
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        drop(values);
        let head = Matrix::pack_with(&pool, Dtype::F32, &bytes, rows, columns).map_err(kernel)?;
        Ok(Neurons { weights, view, pool, head, scales })
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.weights.config().layers.len()
    }
    /// Neurons of a layer.
    pub fn width(&self) -> usize {
        self.weights.config().intermediate
    }

    /// Directions of a layer's neurons, as they are read: `[neurons, hidden]`.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn directions(&self, layer: usize) -> Result<Vec<f32>> {
        let (rows, columns, mut values) = floats(&need(self.weights, Some(layer), self.view.part)?)?;
        if self.view.part == Part::Down {
            // Columns of [hidden, neurons].
            let across = values;
            values = (0..columns)
                .flat_map(|n| (0..rows).map(move |h| (n, h)))
                .map(|(n, h)| across[h * columns + n])
                .collect();
        }
        let hidden = self.head.k();
        let gain = |at: Option<usize>, part: Part| -> Result<Option<Vec<f32>>> {
            let gain = self.weights.part(at, part, Field::Weight).map(|t| t.to_f32()).transpose()?;
            let more = if self.weights.config().norm == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
            Ok(gain.map(|g| g.into_iter().map(|g| g + more).collect()))
        };
        let mut fold = |gain: Option<Vec<f32>>| {
            if let Some(gain) = gain {
                values.chunks_exact_mut(hidden).for_each(|row| row.iter_mut().zip(&gain).for_each(|(v, g)| *v *= g));
            }
        };
        if self.view.fold_input {
            fold(gain(Some(layer), Part::FfnNorm)?);
        }
        if self.view.fold_output {
            fold(gain(None, Part::OutputNorm)?);
        }
        for (neuron, row) in values.chunks_exact_mut(hidden).enumerate() {
            let own = length(row);
            if let Some(seed) = self.view.random {
                gaussian(pair(pair(seed, layer as u64), neuron as u64), row);
                scale(row, own / length(row).max(f32::MIN_POSITIVE));
            }
            if let Some(wanted) = self.view.length {
                scale(row, wanted / own.max(f32::MIN_POSITIVE));
            }
            if self.view.negative {
                scale(row, -1.0);
            }
        }
        Ok(values)
    }

    /// What the head says of every neuron of a layer: its `top` likeliest tokens, and how sharp its law is.
    ///
    /// # Errors
    /// [`ModelError`], also for weights that are not finite.
    pub fn decode(&self, layer: usize, top: usize) -> Result<Decoded> {
        let (hidden, vocab) = (self.head.k(), self.head.n());
        let top = top.clamp(1, vocab);
        let directions = self.directions(layer)?;
        let mut out = Decoded::default();
        let mut acts = Activations::new();
        let mut logits = vec![0.0; CHUNK * vocab];
        for rows in directions.chunks(CHUNK * hidden) {
            let count = rows.len() / hidden;
            self.logits(&mut acts, rows, &mut logits[..count * vocab])?;
            let found: Vec<Mutex<Option<Neuron>>> = (0..count).map(|_| Mutex::new(None)).collect();
            self.pool.run(count, &|i| {
                let neuron = Neuron::read(&logits[i * vocab..(i + 1) * vocab], top);
                *found[i].lock().unwrap_or_else(|e| e.into_inner()) = neuron;
            });
            for neuron in found {
                let Some(neuron) = neuron.into_inner().unwrap_or_else(|e| e.into_inner()) else {
                    return Err(not_finite(layer));
                };
                out.tokens.extend(neuron.top.iter().map(|t| t.0));
                out.probabilities.extend(neuron.top.iter().map(|t| (t.1 - neuron.stats.lse).exp()));
                out.entropy.push(neuron.stats.entropy);
                out.lse.push(neuron.stats.lse);
            }
        }
        Ok(out)
    }

    /// Logits of some tokens, by neuron of a layer: `[neurons, tokens]`.
    ///
    /// # Errors
    /// [`ModelError`] for a token that is not in the vocabulary, or weights that are not finite.
    pub fn logits_of(&self, layer: usize, tokens: &[Token]) -> Result<Vec<f32>> {
        let hidden = self.head.k();
        let mut bytes = Vec::with_capacity(tokens.len() * hidden * 4);
        let mut row = vec![0.0; hidden];
        for &token in tokens {
            self.head.row(token as usize, &mut row).map_err(kernel)?;
            let scale = self.scales.as_ref().map_or(1.0, |s| s[token as usize]);
            bytes.extend(row.iter().flat_map(|v| (v * scale).to_le_bytes()));
        }
        let some = Matrix::pack_with(&self.pool, Dtype::F32, &bytes, tokens.len(), hidden).map_err(kernel)?;
        let directions = self.directions(layer)?;
        let mut out = vec![0.0; directions.len() / hidden * tokens.len()];
        let mut acts = Activations::new();
        self.run(&mut acts, &directions, &some, &mut out)?;
        Ok(out)
    }

    fn logits(&self, acts: &mut Activations, rows: &[f32], out: &mut [f32]) -> Result<()> {
        self.run(acts, rows, &self.head, out)?;
        if let Some(scales) = &self.scales {
            out.chunks_exact_mut(scales.len()).for_each(|row| row.iter_mut().zip(scales).for_each(|(l, s)| *l *= s));
        }
        Ok(())
    }
    fn run(&self, acts: &mut Activations, rows: &[f32], matrix: &Matrix, out: &mut [f32]) -> Result<()> {
        let hidden = matrix.k();
        acts.load(&self.pool, rows, rows.len() / hidden, hidden, Forms::F32).map_err(|e| not_finite(e.row))?;
        product(&self.pool, acts, &mut [Job::store(matrix, out)]).map_err(kernel)
    }
}

struct Neuron {
    top: Vec<(Token, f32)>,
    stats: pick::Stats,
}
impl Neuron {
    fn read(logits: &[f32], top: usize) -> Option<Neuron> {
        let stats = pick::stats(logits).ok()?;
        let mut found = Vec::with_capacity(top);
        pick::top_k(logits, top, &mut found);
        Some(Neuron { top: found, stats })
    }
}

fn need(weights: &Weights, layer: Option<usize>, part: Part) -> Result<Tensor<'_>> {
    weights.part(layer, part, Field::Weight).ok_or_else(|| ModelError::MissingTensor {
        expected: format!("{part:?} of layer {layer:?}"),
        found: format!("{} tensors", weights.names().count()),
    })
}
/// Rows, columns and numbers of a matrix in any format.
fn floats(tensor: &Tensor<'_>) -> Result<(usize, usize, Vec<f32>)> {
    let (rows, columns) = (tensor.rows(), tensor.columns());
    let mut values = vec![0.0; rows * columns];
    for (bytes, row) in tensor.bytes.chunks(tensor.row_bytes().max(1)).zip(values.chunks_exact_mut(columns.max(1))) {
        dequantize(tensor.dtype, bytes, row).map_err(kernel)?;
    }
    Ok((rows, columns, values))
}
fn kernel(error: omnidecode_kernels::error::KernelError) -> ModelError {
    ModelError::Malformed {
        format: "weights",
        at: "a product with the head".into(),
        expected: "matrices that the kernels can read".into(),
        found: error.to_string(),
    }
}
fn not_finite(at: usize) -> ModelError {
    ModelError::Malformed {
        format: "weights",
        at: format!("neurons of layer {at}"),
        expected: "finite numbers".into(),
        found: "others".into(),
    }
}
fn length(row: &[f32]) -> f32 {
    row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32
}
fn scale(row: &mut [f32], by: f32) {
    row.iter_mut().for_each(|v| *v *= by);
}
/// Standard normal numbers by the polar form of Box and Muller.
fn gaussian(seed: u64, row: &mut [f32]) {
    let unit = |i: u64| ((mix(pair(seed, i)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    for (i, v) in row.iter_mut().enumerate() {
        let (a, b) = (unit(2 * i as u64), unit(2 * i as u64 + 1));
        *v = ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32;
    }
}
