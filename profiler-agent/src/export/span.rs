//! A span of time, folded: what pictures are drawn of. Its parts are those in which it was kept, and stay as they are.

use std::sync::Arc;

use super::{
    folded::{Folded, Options},
    merged::Merged,
};
use crate::profile::{Capture, Kind, Profile};

/// See the [module documentation](self).
#[derive(Debug, Clone)]
pub struct Span {
    /// When, where and how.
    pub capture: Capture,
    /// What was sampled, in parts.
    pub parts: Vec<Arc<Folded>>,
}

impl Span {
    /// The span of a profile, in one part.
    pub fn of(profile: &Profile, options: &Options) -> Self {
        Self {
            capture: profile.capture.clone(),
            parts: vec![Arc::new(Folded::new(profile, options))],
        }
    }

    /// What is counted.
    pub fn kind(&self) -> Kind {
        self.parts.first().map_or(Kind::Cpu, |part| part.kind())
    }

    /// Events of all parts.
    pub fn total(&self) -> u64 {
        let totals = self.parts.iter().map(|part| part.total());
        totals.fold(0, u64::saturating_add)
    }

    /// Events of stacks that are not whole.
    pub fn incomplete(&self) -> u64 {
        let incomplete = self.parts.iter().map(|part| part.incomplete());
        incomplete.fold(0, u64::saturating_add)
    }

    /// Its parts as one.
    pub fn merged(&self) -> Merged<'_> {
        Merged::new(&self.parts)
    }
}
