//! Answers that are there already: who asks the same before the next slice comes gets the same, who asks while it is being made waits for
//! it, and where that takes long gets the one before, which says what time it is of.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use super::{answer::Answer, bounds::Busy};

/// Answers that are kept.
const MOST: usize = 64;
/// Bytes of them that are kept.
pub(super) const MOST_BYTES: usize = 32 << 20;
/// How long a newer answer is waited for where there is one already.
const SOON: Duration = Duration::from_millis(300);
/// How old that may be.
const OLDEST: Duration = Duration::from_secs(60);

/// An answer, or why there is none now.
pub(super) type Made = Result<Arc<Answer>, Busy>;

/// See the [module documentation](self).
#[derive(Debug, Clone, Default)]
pub(super) struct Cache(Arc<Mutex<HashMap<String, Kept>>>);

/// What there is of a question.
#[derive(Debug, Default)]
struct Kept {
    last: Option<Last>,
    /// What comes next; nobody begins it twice.
    next: Option<watch::Receiver<Option<Made>>>,
}

#[derive(Debug, Clone)]
struct Last {
    /// When the last slice came that it is made of.
    news: Instant,
    answer: Arc<Answer>,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a question, where the last slice has come at `news`; `make` makes one, beside this task.
    pub(super) async fn answer<F>(&self, question: &str, news: Instant, make: impl FnOnce() -> F) -> Made
    where
        F: Future<Output = Made> + Send + 'static,
    {
        let (last, mut next) = {
            let mut all = self.lock();
            make_room(&mut all);
            let kept = all.entry(question.to_owned()).or_default();
            if let Some(last) = kept.last.as_ref().filter(|last| last.news == news) {
                return Ok(Arc::clone(&last.answer));
            }
            let next = kept.next.clone().unwrap_or_else(|| {
                let (sender, receiver) = watch::channel(None);
                kept.next = Some(receiver.clone());
                tokio::spawn(self.clone().keep(question.to_owned(), news, make(), sender));
                receiver
            });
            (kept.last.clone(), next)
        };
        let made = async {
            let made = next.wait_for(Option::is_some).await.ok();
            made.and_then(|made| made.clone()).unwrap_or(Err(Busy::Turn))
        };
        let Some(last) = last.filter(|last| last.news.elapsed() < OLDEST) else {
            return made.await;
        };
        match timeout(SOON, made).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Ok(last.answer),
        }
    }

    /// Forgets all answers; those that are being made stay.
    pub(super) fn forget(&self) {
        forget(&mut self.lock());
    }

    /// Makes the next answer and keeps it; who asked may be gone meanwhile.
    async fn keep(
        self,
        question: String,
        news: Instant,
        make: impl Future<Output = Made>,
        sender: watch::Sender<Option<Made>>,
    ) {
        let made = make.await;
        if let Some(kept) = self.lock().get_mut(&question) {
            kept.next = None;
            // One that is larger than all that is kept would go with the next question.
            if let Ok(answer) = &made
                && answer.len() <= MOST_BYTES
            {
                kept.last = Some(Last {
                    news,
                    answer: Arc::clone(answer),
                });
            }
        }
        sender.send_replace(Some(made));
    }
}

/// Forgets all answers when they are too many or too large.
fn make_room(all: &mut HashMap<String, Kept>) {
    let bytes = |kept: &Kept| kept.last.as_ref().map_or(0, |last| last.answer.len());
    if all.len() >= MOST || all.values().map(bytes).sum::<usize>() > MOST_BYTES {
        forget(all);
    }
}

fn forget(all: &mut HashMap<String, Kept>) {
    all.retain(|_, kept| kept.next.is_some());
    all.values_mut().for_each(|kept| kept.last = None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> Made {
        Ok(Arc::new(Answer::Nothing(text.to_owned())))
    }

    fn text(made: &Made) -> String {
        match made.as_deref() {
            Ok(Answer::Nothing(text)) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_until_the_next_slice_and_until_the_next_answer() {
        let cache = Cache::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(2);
        assert_eq!(
            text(&cache.answer("a", now, || async { made("one") }).await),
            "one"
        );
        assert_eq!(
            text(&cache.answer("a", now, || async { made("two") }).await),
            "one"
        );
        assert_eq!(
            text(&cache.answer("b", now, || async { made("other") }).await),
            "other"
        );
        assert_eq!(
            text(&cache.answer("a", later, || async { made("three") }).await),
            "three"
        );
        // One that takes long is not waited for where there is one, and is there in the end.
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            made("four")
        };
        let latest = now + Duration::from_secs(4);
        assert_eq!(text(&cache.answer("a", latest, slow).await), "three");
        assert_eq!(
            text(&cache.answer("a", latest, || async { made("never") }).await),
            "three"
        );
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(
            text(&cache.answer("a", latest, || async { made("never") }).await),
            "four"
        );
        // Where there is none it is.
        assert_eq!(text(&cache.answer("c", latest, slow).await), "four");
    }

    #[tokio::test]
    async fn so_many_are_kept_and_no_more() {
        let cache = Cache::default();
        let now = Instant::now();
        for number in 0..1000 {
            let _ = cache
                .answer(&number.to_string(), now, || async { Err(Busy::Turn) })
                .await;
            assert!(cache.lock().len() <= MOST);
        }
    }
}
