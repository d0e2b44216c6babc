//! The two ends of a request on its way: the engine's outbox and the reader's handle.
use crate::error::{Error, Result};
use crate::mailbox::Mailbox;
use crate::request::{Delta, Event, Finish, Request};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Events on their way, and who waits for them.
#[derive(Default)]
struct Post {
    events: VecDeque<Event>,
    /// Of an async reader.
    waker: Option<Waker>,
    /// A thread sleeps until something comes.
    awaited: bool,
    /// Nothing more will come.
    closed: bool,
}

/// What both ends of a request share.
#[derive(Default)]
pub(crate) struct Line {
    post: Mutex<Post>,
    news: Condvar,
    cancelled: AtomicBool,
    /// The reader wants nothing before the end.
    whole: AtomicBool,
}
impl Line {
    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(|e| e.into_inner())
    }
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
    pub fn whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
}

/// The engine's end: sends events and wakes the reader, who learns from its drop that nothing more will come.
pub(crate) struct Outbox(pub Arc<Line>);
impl Outbox {
    /// A vanished reader is a cancel, which the executor sees elsewhere.
    pub fn send(&self, events: impl IntoIterator<Item = Event>) {
        self.change(|post| post.events.extend(events));
    }
    /// Change the post, and wake who waits for it, once.
    fn change(&self, change: impl FnOnce(&mut Post)) {
        let mut post = self.0.post();
        change(&mut post);
        let (waker, awaited) = (post.waker.take(), post.awaited);
        drop(post);
        if awaited {
            self.0.news.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
impl Drop for Outbox {
    fn drop(&mut self) {
        self.change(|post| post.closed = true);
    }
}

pub(crate) struct Submission {
    pub request: Request,
    pub outbox: Outbox,
}

/// The reading end of a request. Dropping it cancels the request.
pub struct Handle {
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
    /// Take an event; `Poll::Ready(None)` after the end. While there is none, `wait` leaves word of who waits, or waits
    /// and says with the post in its hands whether to look again.
    fn take<'l>(
        &mut self,
        line: &'l Line,
        mut wait: impl FnMut(MutexGuard<'l, Post>) -> Option<MutexGuard<'l, Post>>,
    ) -> Poll<Option<Event>> {
        if self.over {
            return Poll::Ready(None);
        }
        let mut post = line.post();
        loop {
            // An engine that is gone without a word was shut down.
            let gone = || Event::Failed(Error::Shutdown);
            let next = post.events.pop_front();
            if let Some(event) = next.or_else(|| post.closed.then(gone)) {
                self.over = !matches!(event, Event::Delta(_));
                return Poll::Ready(Some(event));
            }
            match wait(post) {
                Some(again) => post = again,
                None => return Poll::Pending,
            }
        }
    }
    fn wait(&mut self, until: Option<Instant>) -> Option<Event> {
        let line = self.line.clone();
        let taken = self.take(&line, |mut post| {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            post.awaited = true;
            let mut post = match left {
                Some(left) => line.news.wait_timeout(post, left).unwrap_or_else(|e| e.into_inner()).0,
                None => line.news.wait(post).unwrap_or_else(|e| e.into_inner()),
            };
            post.awaited = false;
            Some(post)
        });
        match taken {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }
    /// The next event, waiting for it; `None` after the end.
    pub fn next_event(&mut self) -> Option<Event> {
        self.wait(None)
    }
    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        let line = self.line.clone();
        match self.take(&line, |_| None) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }
    /// The next event, waiting at most so long; `None` after that time or after the end.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Event> {
        self.wait(Instant::now().checked_add(timeout))
    }
    /// The next event for an async reader; ready with `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let line = self.line.clone();
        self.take(&line, |mut post| {
            post.waker = Some(cx.waker().clone());
            None
        })
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
