//! An answer that comes later, from another thread, or too late.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The answer, once it is there.
#[derive(Debug)]
pub struct Promise<T> {
    answer: Mutex<Answer<T>>,
    told: Condvar,
}

#[derive(Debug)]
enum Answer<T> {
    Awaited,
    Told(T),
    /// Nobody waits for it any more.
    Unwanted,
}

impl<T> Default for Promise<T> {
    fn default() -> Promise<T> {
        Promise {
            answer: Mutex::new(Answer::Awaited),
            told: Condvar::new(),
        }
    }
}

impl<T: Clone> Promise<T> {
    /// Answers; gives the answer back when nobody wants it any more.
    pub fn tell(&self, answer: T) -> Option<T> {
        let mut now = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*now, Answer::Unwanted) {
            return Some(answer);
        }
        *now = Answer::Told(answer);
        self.told.notify_all();
        None
    }

    /// The answer, if it is there.
    pub fn look(&self) -> Option<T> {
        match &*self.answer.lock().unwrap_or_else(PoisonError::into_inner) {
            Answer::Told(answer) => Some(answer.clone()),
            _ => None,
        }
    }

    /// The answer, if it comes until then.
    pub fn wait(&self, deadline: Instant) -> Option<T> {
        let mut now = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Answer::Told(answer) = &*now {
                return Some(answer.clone());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.told.wait_timeout(now, left);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Promise::wait`]; and an answer that comes later is not wanted.
    pub fn wait_or_leave(&self, deadline: Instant) -> Option<T> {
        if let Some(answer) = self.wait(deadline) {
            return Some(answer);
        }
        let mut now = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *now, Answer::Unwanted) {
            Answer::Told(answer) => Some(answer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_in_time_and_one_too_late() {
        let soon = || Instant::now() + Duration::from_millis(5);
        let promise = Promise::default();
        assert_eq!((promise.look(), promise.wait(soon())), (None, None));
        assert_eq!(promise.tell(1), None);
        assert_eq!(
            (promise.look(), promise.wait(Instant::now())),
            (Some(1), Some(1))
        );
        assert_eq!(promise.wait_or_leave(Instant::now()), Some(1));

        let promise = Promise::default();
        assert_eq!(promise.wait_or_leave(soon()), None);
        assert_eq!(promise.tell(2), Some(2), "comes back");
        assert_eq!(promise.look(), None);
    }
}
