//! Pictures for people.
