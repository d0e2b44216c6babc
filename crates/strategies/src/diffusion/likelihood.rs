//! Likelihood of an answer under a masked diffusion model (arXiv:2502.09992 eq. 6, sheet 00-diffusion §1).
use super::settings::bidirectional;
use omnidecode_core::noise::{Key, Purpose};
use omnidecode_engine::{
    Engine, Error, Guarantee, Look, Readout, Request, Result, Sampling, Sequence, Strategy, Token,
};
use std::sync::mpsc::{Receiver, channel};

/// Estimate of log p(answer | what is committed), in nats: the mean over `draws` of (l / k) times the log-probabilities
/// of k masked tokens of the answer, k spread evenly over 1..=l from a random start. One forward a draw; the estimate
/// bounds the log-likelihood from below on average. The sequence is left as it was.
///
/// # Errors
/// [`Error::Strategy`] for an empty answer, no draws, or a model that is not bidirectional; as [`Sequence::canvas`].
pub async fn likelihood(seq: &mut Sequence, answer: &[Token], draws: usize) -> Result<f64> {
    bidirectional("likelihood", &seq.card())?;
    if answer.is_empty() || draws == 0 {
        let found = format!("{} tokens and {draws} draws", answer.len());
        return Err(Error::Strategy(format!("a likelihood takes an answer and at least one draw, found {found}")));
    }
    let (start, length, seed) = (seq.len(), answer.len(), seq.seed());
    let uniform = |position: usize, lane: usize| Key::new(seed, position, Purpose::Canvas).uniform(lane as u64);
    let mut canvas = seq.canvas(0..start + length)?;
    for (i, &token) in answer.iter().enumerate() {
        canvas.commit(start + i, token, 1.0)?;
    }
    let offset = uniform(start + length, 0) * length as f64;
    let mut sum = 0.0;
    for draw in 0..draws {
        let masks = 1 + (offset + draw as f64 * length as f64 / draws as f64) as usize % length;
        let mut order: Vec<usize> = (start..start + length).collect();
        order.sort_by(|&a, &b| uniform(a, draw).total_cmp(&uniform(b, draw)));
        order.truncate(masks);
        order.sort_unstable();
        let mut tokens: Vec<Token> = order.iter().map(|&p| answer[p - start]).collect();
        tokens.sort_unstable();
        tokens.dedup();
        order.iter().try_for_each(|&p| canvas.remask(p))?;
        let read = Readout::NOTHING.logprobs(tokens.clone());
        let look = Look { about: Some(order.clone()), ..Look::full(0..start + length, true, read) };
        let view = canvas.look(look).await?;
        let mut log = 0.0;
        for &place in &order {
            let token = answer[place - start];
            let at = tokens.binary_search(&token).unwrap_or(0);
            log += f64::from(view.at(place).asked()[at]);
            canvas.commit(place, token, 1.0)?;
        }
        sum += log * length as f64 / masks as f64;
    }
    Ok(sum / draws as f64)
}

/// A request that estimates [`likelihood`], to run among others; its answer is empty, the estimate comes by the channel.
pub fn request(prompt: Vec<Token>, answer: Vec<Token>, draws: usize, seed: u64) -> (Request, Receiver<f64>) {
    let (send, receive) = channel();
    let strategy = Strategy::new("likelihood", Guarantee::Distribution, move |mut seq| async move {
        let score = likelihood(&mut seq, &answer, draws).await?;
        // A reader that is gone has no use for it.
        let _ = send.send(score);
        Ok(())
    });
    (Request::new(prompt, strategy, Sampling { max_tokens: None, seed, ..Sampling::default() }), receive)
}

/// [`likelihood`] of an answer to a prompt, waiting for it.
///
/// # Errors
/// As [`likelihood`], and what the engine refuses.
pub fn score(engine: &Engine, prompt: Vec<Token>, answer: Vec<Token>, draws: usize, seed: u64) -> Result<f64> {
    let (request, receive) = request(prompt, answer, draws, seed);
    engine.submit(request).collect().end?;
    receive.recv().map_err(|_| Error::Strategy("the likelihood was not computed: the request was cancelled".into()))
}
