//! An answer as it is made.
use crate::error::Result;
use omnidecode_engine::{Answer, Delta, Event, Finish, Handle};

/// The deltas of one answer; an iterator that waits. Dropping it cancels the request.
///
/// ```no_run
/// # let llm = omnidecode::Llm::open("model.gguf")?;
/// # use omnidecode::Sampling;
/// for delta in llm.stream("Once upon a time", "token-recycling", Sampling::default())? {
///     print!("{}", delta?.text);
/// }
/// # Ok::<(), omnidecode::Error>(())
/// ```
pub struct Stream {
    handle: Handle,
    finish: Option<Finish>,
}

impl Stream {
    pub(crate) fn new(handle: Handle) -> Self {
        Stream { handle, finish: None }
    }
    /// How it ended, once it has.
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }
    /// Stop the request; its last events still come.
    pub fn cancel(&self) {
        self.handle.cancel();
    }
    /// Wait for the end.
    ///
    /// # Errors
    /// Whatever ended the request early.
    pub fn collect_answer(self) -> Result<Answer> {
        let answer = self.handle.collect();
        match &answer.end {
            Ok(_) => Ok(answer),
            Err(error) => Err(error.clone().into()),
        }
    }
}

impl Iterator for Stream {
    type Item = Result<Delta>;
    fn next(&mut self) -> Option<Self::Item> {
        match self.handle.next_event()? {
            Event::Delta(delta) => Some(Ok(delta)),
            Event::Failed(error) => Some(Err(error.into())),
            Event::Done(finish) => {
                self.finish = Some(finish);
                None
            }
        }
    }
}
