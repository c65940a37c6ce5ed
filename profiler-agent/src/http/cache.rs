//! Answers that were made of the history as it is now: who asks the same before the next slice comes gets the same, and who asks while it
//! is being made waits for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::OnceCell;

use super::answer::Answer;

/// Answers that are kept.
const MOST: usize = 64;
/// Bytes of them that are kept.
const MOST_BYTES: usize = 32 << 20;

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Kept>);

/// A place of an answer, made or not.
pub(super) type Place = Arc<OnceCell<Arc<Answer>>>;

#[derive(Debug, Default)]
struct Kept {
    /// When the last slice came.
    news: Option<Instant>,
    places: HashMap<String, Place>,
}

impl Cache {
    /// The place of the answer to a question, as long as no other slice than the one of `news` has come.
    pub(super) fn place(&self, question: &str, news: Instant) -> Place {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |place: &Place| place.get().map_or(0, |answer| answer.len());
        let is_full =
            kept.places.len() >= MOST || kept.places.values().map(bytes).sum::<usize>() > MOST_BYTES;
        if kept.news != Some(news) || is_full {
            kept.news = Some(news);
            // Who waits for one holds it.
            kept.places.clear();
        }
        Arc::clone(kept.places.entry(question.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_until_the_next_slice() {
        let cache = Cache::default();
        let now = Instant::now();
        let is_same = |one: &Place, other: &Place| Arc::ptr_eq(one, other);
        let place = cache.place("/x?a", now);
        assert!(is_same(&place, &cache.place("/x?a", now)));
        assert!(!is_same(&place, &cache.place("/x?b", now)));
        assert!(is_same(&place, &cache.place("/x?a", now)));
        let later = now + std::time::Duration::from_secs(2);
        assert!(!is_same(&place, &cache.place("/x?a", later)));
    }

    #[test]
    fn so_many_are_kept_and_no_more() {
        let cache = Cache::default();
        let now = Instant::now();
        for number in 0..1000 {
            drop(cache.place(&number.to_string(), now));
            assert!(cache.0.lock().unwrap().places.len() <= MOST);
        }
    }
}
