//! Airdrop: its events and messages, and the loop that drives an extractor through them.

mod platform;

pub use platform::{Body, Fate, Platform, PlatformError, SealedMessage, Upload};
