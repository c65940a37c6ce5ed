//! How the walk of a user stack ended.

/// How the walk of a user stack ended. Crosses the kernel boundary as a `u8`.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The walk reached the frame where the thread began.
    Complete = 0,
    /// There is no user stack: a kernel thread, or a thread that is between two programs or has given its memory back.
    NoUserStack = 1,
    /// The limit of frames was reached; the stack is deeper.
    Truncated = 2,
    /// The next address lies in no mapping.
    NoMapping = 3,
    /// The code there has no unwind rows, and its frame pointer makes no sense.
    NoRule = 4,
    /// The stack could not be read there (paged out, or not a stack).
    Unreadable = 5,
    /// The unwind rule is of a kind that is not supported.
    UnsupportedRule = 6,
    /// The frame pointer does not lead up the stack.
    BadFramePointer = 7,
    /// A 32-bit program.
    Compat = 8,
    /// The unwind rule leads to what cannot be a frame: the table is wrong, or another file's.
    BadRule = 9,
    /// User space unwound a copy of the stack, which ended there: the stack is larger than what is copied, or goes on elsewhere.
    ShortCopy = 10,
}

impl Outcome {
    /// Every outcome, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::Complete,
        Self::NoUserStack,
        Self::Truncated,
        Self::NoMapping,
        Self::NoRule,
        Self::Unreadable,
        Self::UnsupportedRule,
        Self::BadFramePointer,
        Self::Compat,
        Self::BadRule,
        Self::ShortCopy,
    ];

    /// The outcome of a number that came over the boundary.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether nothing is missing from the stack.
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Complete | Self::NoUserStack)
    }

    /// Name in outputs: lower case, words joined by `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::NoUserStack => "no_user_stack",
            Self::Truncated => "truncated",
            Self::NoMapping => "no_mapping",
            Self::NoRule => "no_rule",
            Self::Unreadable => "unreadable",
            Self::UnsupportedRule => "unsupported_rule",
            Self::BadFramePointer => "bad_frame_pointer",
            Self::Compat => "32_bit",
            Self::BadRule => "bad_rule",
            Self::ShortCopy => "short_copy",
        }
    }
}
