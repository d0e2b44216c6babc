//! The thread boundary: submissions, wake-ups and cancellations in.
use crate::error::Error;
use crate::request::{Event, Handle, Outbox, Request, Submission};
use crate::usage::Stats;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

#[derive(Default)]
struct Mail {
    new: Vec<Submission>,
    ready: Vec<usize>,
    sweep: bool,
    closed: bool,
    stats: Stats,
}

#[derive(Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    bell: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(|e| e.into_inner())
    }
    pub fn ready(&self, key: usize) {
        self.lock().ready.push(key);
        self.bell.notify_one();
    }
    /// Some request was cancelled.
    pub fn nudge(&self) {
        self.lock().sweep = true;
        self.bell.notify_one();
    }
    pub fn take(&self, new: &mut Vec<Submission>, ready: &mut Vec<usize>) -> bool {
        let mut mail = self.lock();
        new.append(&mut mail.new);
        ready.append(&mut mail.ready);
        std::mem::take(&mut mail.sweep)
    }
    /// Whose wakers were called.
    pub fn woken(&self, ready: &mut Vec<usize>) {
        ready.append(&mut self.lock().ready);
    }
    pub fn wait(&self) {
        let idle = |m: &mut Mail| m.new.is_empty() && m.ready.is_empty() && !m.sweep && !m.closed;
        drop(self.bell.wait_while(self.lock(), idle));
    }
    pub fn close(&self) {
        self.lock().closed = true;
        self.bell.notify_one();
    }
    /// Fail what nobody will take any more.
    pub fn refuse(&self) {
        let new = std::mem::take(&mut self.lock().new);
        new.into_iter().for_each(|s| s.outbox.send(Event::Failed(Error::Shutdown)));
    }
    pub fn closed(&self) -> bool {
        self.lock().closed
    }
    pub fn is_empty(&self) -> bool {
        let m = self.lock();
        m.new.is_empty() && m.ready.is_empty() && !m.sweep
    }
    pub fn report(&self, stats: Stats) {
        self.lock().stats = stats;
    }
    pub fn stats(&self) -> Stats {
        self.lock().stats
    }
    pub fn submit(self: &Arc<Self>, request: Request) -> Handle {
        let (sender, events) = channel();
        let waker = Arc::new(Mutex::new(None));
        let cancelled = Arc::new(AtomicBool::new(false));
        let outbox = Outbox { sender, waker: waker.clone() };
        let mut mail = self.lock();
        if mail.closed {
            outbox.send(Event::Failed(Error::Shutdown));
        } else {
            mail.new.push(Submission { request, outbox, cancelled: cancelled.clone() });
        }
        drop(mail);
        self.bell.notify_one();
        Handle { events, waker, cancelled, mail: self.clone(), over: false }
    }
}
