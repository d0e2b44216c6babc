//! The thread boundary: submissions, wake-ups and cancellations in.
use crate::error::Error;
use crate::handle::{Handle, Line, Outbox, Submission};
use crate::request::{Event, Request};
use crate::usage::Stats;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

#[derive(Default)]
struct Mail {
    new: Vec<Submission>,
    ready: Vec<usize>,
    sweep: bool,
    closed: bool,
    /// The engine's thread sleeps: it must be rung.
    asleep: bool,
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
    /// Change the mail, and ring.
    fn post(&self, change: impl FnOnce(&mut Mail)) {
        let mut mail = self.lock();
        change(&mut mail);
        // Strategies are mostly woken by the engine itself: no reason for a system call.
        let asleep = mail.asleep;
        drop(mail);
        if asleep {
            self.bell.notify_one();
        }
    }
    pub fn ready(&self, key: usize) {
        self.post(|mail| mail.ready.push(key));
    }
    /// Some request was cancelled.
    pub fn nudge(&self) {
        self.post(|mail| mail.sweep = true);
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
        let mut mail = self.lock();
        mail.asleep = true;
        let mut mail = self.bell.wait_while(mail, idle).unwrap_or_else(|e| e.into_inner());
        mail.asleep = false;
    }
    pub fn close(&self) {
        self.post(|mail| mail.closed = true);
    }
    /// Fail what nobody will take any more.
    pub fn refuse(&self) {
        let new = std::mem::take(&mut self.lock().new);
        new.into_iter().for_each(|s| s.outbox.send([Event::Failed(Error::Shutdown)]));
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
        let line = Arc::new(Line::default());
        let outbox = Outbox(line.clone());
        self.post(|mail| match mail.closed {
            true => outbox.send([Event::Failed(Error::Shutdown)]),
            false => mail.new.push(Submission { request, outbox }),
        });
        Handle { line, mail: self.clone(), over: false }
    }
}
