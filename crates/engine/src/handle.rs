//! The two ends of a request on its way: the engine's outbox and the reader's handle.
use crate::error::{Error, Result};
use crate::mailbox::Mailbox;
use crate::request::{Delta, Event, Finish, Request};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What both ends of a request share.
#[derive(Default)]
pub(crate) struct Line {
    /// Of an async reader.
    waker: Mutex<Option<Waker>>,
    cancelled: AtomicBool,
    /// The reader wants nothing before the end.
    whole: AtomicBool,
}
impl Line {
    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(|e| e.into_inner())
    }
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
    pub fn whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
}

/// Sends events and wakes an async reader.
#[derive(Clone)]
pub(crate) struct Outbox {
    pub sender: Sender<Event>,
    pub line: Arc<Line>,
}
impl Outbox {
    /// A vanished reader is a cancel, which the executor sees elsewhere.
    pub fn send(&self, event: Event) {
        let _ = self.sender.send(event);
        let waker = self.line.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

pub(crate) struct Submission {
    pub request: Request,
    pub outbox: Outbox,
}

/// The reading end of a request. Dropping it cancels the request.
pub struct Handle {
    pub(crate) events: Receiver<Event>,
    pub(crate) line: Arc<Line>,
    pub(crate) mail: Arc<Mailbox>,
    pub(crate) over: bool,
}

/// An answer, collected.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Everything sent, joined.
    pub delta: Delta,
    /// How it ended.
    pub end: Result<Finish>,
}

impl Handle {
    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        // An engine that is gone without a word was shut down.
        let event = event.unwrap_or(Event::Failed(Error::Shutdown));
        self.over = !matches!(event, Event::Delta(_));
        Some(event)
    }
    /// The next event, waiting for it; `None` after the end.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.events.recv().ok();
        self.note(event)
    }
    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.events.try_recv() {
            _ if self.over => None,
            Ok(event) => self.note(Some(event)),
            Err(std::sync::mpsc::TryRecvError::Empty) => None,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => self.note(None),
        }
    }
    /// The next event, waiting at most so long; `None` after that time or after the end.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Event> {
        match self.events.recv_timeout(timeout) {
            _ if self.over => None,
            Ok(event) => self.note(Some(event)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => self.note(None),
        }
    }
    /// The next event for an async reader; ready with `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.over {
            return Poll::Ready(None);
        }
        // The waker first: an event sent between the two is then seen or wakes.
        *self.line.waker() = Some(cx.waker().clone());
        match self.try_next() {
            Some(event) => Poll::Ready(Some(event)),
            None => Poll::Pending,
        }
    }
    /// Whether the end was seen.
    pub fn is_over(&self) -> bool {
        self.over
    }
    /// Stop the request; its end will be [`Reason::Abort`] unless it ended before.
    pub fn cancel(&self) {
        self.line.cancelled.store(true, Ordering::Release);
        self.mail.nudge();
    }
    /// From now on send nothing before the end: for a reader that shows nothing before. It need not be woken for every
    /// token then, which costs the engine as much as the rest of a step on a small model.
    pub fn whole(&self) {
        self.line.whole.store(true, Ordering::Relaxed);
    }
    /// Wait for the end.
    pub fn collect(mut self) -> Answer {
        self.whole();
        let mut all = Delta::default();
        loop {
            match self.next_event() {
                Some(Event::Delta(mut delta)) => {
                    all.tokens.append(&mut delta.tokens);
                    all.text.push_str(&delta.text);
                    all.logprobs.append(&mut delta.logprobs);
                    all.origins.append(&mut delta.origins);
                    all.marks.append(&mut delta.marks);
                }
                Some(Event::Done(finish)) => return Answer { delta: all, end: Ok(finish) },
                Some(Event::Failed(e)) => return Answer { delta: all, end: Err(e) },
                None => return Answer { delta: all, end: Err(Error::Shutdown) },
            }
        }
    }
}
impl Drop for Handle {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
        }
    }
}
