//! Faults by setting: which call is answered how, instead of as it should be.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Prepare,
    Upload,
    Confirm,
    DownloadUrl,
    Download,
    StateGet,
    State,
    Message,
    SnapIn,
    Blueprint,
    Mapping,
    Attachment,
}

impl Call {
    const ALL: [(Call, &'static str); 12] = [
        (Call::Prepare, "prepare"),
        (Call::Upload, "upload"),
        (Call::Confirm, "confirm"),
        (Call::DownloadUrl, "download-url"),
        (Call::Download, "download"),
        (Call::StateGet, "state-get"),
        (Call::State, "state"),
        (Call::Message, "message"),
        (Call::SnapIn, "snap-in"),
        (Call::Blueprint, "blueprint"),
        (Call::Mapping, "mapping"),
        (Call::Attachment, "attachment"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(call, _)| *call == self).map_or("", |(_, name)| name)
    }

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found.map(|(call, _)| *call).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("{name:?} is no call: it is one of {}", known.join(", "))
        })
    }
}

/// How a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// With this status; nothing takes effect.
    Status { status: u16, retry_after_seconds: Option<u64> },
    /// Not at all, after it took effect.
    Lost,
}

/// A fault, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    text: String,
    call: Call,
    act: Act,
    /// The first call of its kind that it befalls, from 1, and how many from there on; `None`: all, until it is lifted.
    befalls: Option<(u64, u64)>,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, arguments) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let mut arguments = arguments.into_iter().flat_map(|arguments| arguments.split(',')).map(str::trim);
        let mut retry_after_seconds = None;
        let (call, action) = if name == "429" {
            let call = arguments.next().ok_or("429 needs to know which call: 429:upload,3,1")?;
            (call, "429")
        } else {
            name.rsplit_once('-').ok_or_else(|| format!("{name:?} is no fault: write upload-503:2, say"))?
        };
        let call = Call::named(call)?;
        let mut number = |what: &str| {
            let Some(text) = arguments.next() else { return Ok(None) };
            let parsed = text.parse::<u64>().ok();
            parsed.map(Some).ok_or_else(|| format!("{what} is a whole number, not {text:?}"))
        };
        let first = number("which call")?;
        let times = if name == "429" {
            retry_after_seconds = number("the seconds to wait")?;
            1
        } else {
            number("how often")?.unwrap_or(1)
        };
        if first == Some(0) || times == 0 {
            return Err("calls are counted from 1".to_owned());
        }
        if let Some(more) = arguments.next() {
            return Err(format!("{more:?} is one argument too many"));
        }
        let act = match action {
            "lost" => Act::Lost,
            status => match status.parse() {
                Ok(status @ 400..600) => Act::Status { status, retry_after_seconds },
                _ => return Err(format!("{status:?} is neither `lost` nor a status from 400 to 599")),
            },
        };
        Ok(Self { text: text.to_owned(), call, act, befalls: first.map(|first| (first, times)) })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The faults that are set, and how often each came true.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: Vec<(Fault, u64)>,
    /// Calls so far, by their place in [`Call::ALL`].
    calls: [u64; Call::ALL.len()],
}

impl Faults {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let faults = faults.iter().map(|fault| (fault.clone(), 0)).collect();
        Self(Mutex::new(State { faults, ..State::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, and says what befalls it.
    pub(crate) fn befall(&self, call: Call) -> Option<Act> {
        let mut state = self.lock();
        let place = Call::ALL.iter().position(|(known, _)| *known == call)?;
        state.calls[place] += 1;
        let number = state.calls[place];
        let (fault, came_true) = state.faults.iter_mut().find(|(fault, _)| {
            let now = fault
                .befalls
                .is_none_or(|(first, times)| (first..first.saturating_add(times)).contains(&number));
            fault.call == call && now
        })?;
        *came_true += 1;
        Some(fault.act)
    }

    pub(crate) fn add(&self, faults: Vec<Fault>) {
        self.lock().faults.extend(faults.into_iter().map(|fault| (fault, 0)));
    }

    /// Lifts the fault that is written so, or all.
    pub(crate) fn lift(&self, text: Option<&str>) {
        self.lock().faults.retain(|(fault, _)| text.is_some_and(|text| fault.text != text));
    }

    /// The calls so far, and the faults with how often each came true.
    pub(crate) fn report(&self) -> Value {
        let state = self.lock();
        let faults: Vec<Value> = state
            .faults
            .iter()
            .map(|(fault, came_true)| json!({ "fault": fault.to_string(), "came_true": came_true }))
            .collect();
        let calls: serde_json::Map<String, Value> = Call::ALL
            .iter()
            .zip(state.calls)
            .map(|((_, name), calls)| ((*name).to_owned(), calls.into()))
            .collect();
        json!({ "faults": faults, "calls": calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_befalls_the_calls_that_it_says_and_no_other() {
        let fault = |text: &str| text.parse::<Fault>().unwrap();
        let faults = Faults::new(&[fault("upload-503:2,2"), fault("429:confirm,1,7"), fault("message-500")]);
        let status = |status, retry_after_seconds| Some(Act::Status { status, retry_after_seconds });
        let uploads: Vec<_> = (0..5).map(|_| faults.befall(Call::Upload)).collect();
        assert_eq!(uploads, [None, status(503, None), status(503, None), None, None]);
        assert_eq!(faults.befall(Call::Confirm), status(429, Some(7)));
        assert_eq!(faults.befall(Call::Confirm), None);
        assert_eq!(faults.befall(Call::Message), status(500, None));
        assert_eq!(faults.befall(Call::Message), status(500, None));
        faults.lift(Some("message-500"));
        assert_eq!(faults.befall(Call::Message), None);
        faults.add(vec![fault("message-lost:4")]);
        assert_eq!(faults.befall(Call::Message), Some(Act::Lost));
        let report = faults.report();
        assert_eq!(report["calls"]["upload"], 5);
        assert_eq!(report["faults"][0], json!({ "fault": "upload-503:2,2", "came_true": 2 }));
    }

    #[test]
    fn what_is_no_fault_says_why() {
        for (text, reason) in [
            ("upload", "is no fault"),
            ("download-200", "neither `lost` nor a status"),
            ("dance-500", "is no call"),
            ("upload-503:x", "which call is a whole number"),
            ("upload-503:0", "counted from 1"),
            ("upload-503:1,2,3", "one argument too many"),
            ("429", "needs to know which call"),
            ("429:upload,1,soon", "the seconds to wait is a whole number"),
        ] {
            let said = text.parse::<Fault>().unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
