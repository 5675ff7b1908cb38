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
    /// With half of the file, after which the connection is closed.
    Short,
}

/// What a fault befalls.
#[derive(Debug, Clone, PartialEq, Eq)]
enum On {
    /// Calls of a kind: the first one, from 1, and how many from there on; `None`: all, until it is lifted.
    Calls { call: Call, befalls: Option<(u64, u64)> },
    /// A file of the external system, the first times that it is asked for; `None`: always, until it is lifted.
    File { number: u64, times: Option<u64> },
}

/// A fault, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    text: String,
    on: On,
    act: Act,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, arguments) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let mut arguments = arguments.into_iter().flat_map(|arguments| arguments.split(',')).map(str::trim);
        // No call: it is the file that is told by its number.
        let (call, action, limited) = if name == "429" {
            let call = arguments.next().ok_or("429 needs to know which call: 429:upload,3,1")?;
            (Some(call), "429", true)
        } else if let Some(action) = name.strip_prefix("ext-") {
            (None, action, action == "429")
        } else {
            let parts = name.rsplit_once('-');
            let (call, action) =
                parts.ok_or_else(|| format!("{name:?} is no fault: write upload-503:2, say"))?;
            (Some(call), action, false)
        };
        let call = call.map(Call::named).transpose()?;
        let mut number = |what: &str| {
            let Some(text) = arguments.next() else { return Ok(None) };
            let parsed = text.parse::<u64>().ok();
            parsed.map(Some).ok_or_else(|| format!("{what} is a whole number, not {text:?}"))
        };
        let first = number(if call.is_some() { "which call" } else { "which file" })?;
        let (times, retry_after_seconds) =
            if limited { (Some(1), number("the seconds to wait")?) } else { (number("how often")?, None) };
        let on = match (call, first) {
            (Some(_), Some(0)) => return Err("calls are counted from 1".to_owned()),
            (Some(call), first) => {
                On::Calls { call, befalls: first.map(|first| (first, times.unwrap_or(1))) }
            }
            (None, Some(number)) => On::File { number, times },
            (None, None) => return Err(format!("{name} needs to know which file: {name}:7")),
        };
        if times == Some(0) {
            return Err("a fault comes true once or more often".to_owned());
        }
        if let Some(more) = arguments.next() {
            return Err(format!("{more:?} is one argument too many"));
        }
        let (word, word_act) = if call.is_some() { ("lost", Act::Lost) } else { ("short", Act::Short) };
        let act = match action {
            action if action == word => word_act,
            status => match status.parse() {
                Ok(status @ 400..600) => Act::Status { status, retry_after_seconds },
                _ => return Err(format!("{status:?} is neither `{word}` nor a status from 400 to 599")),
            },
        };
        Ok(Self { text: text.to_owned(), on, act })
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

impl State {
    /// The first fault that this is true of, with how often it came true, comes true once more.
    fn come_true(&mut self, is_it: impl Fn(&On, u64) -> bool) -> Option<Act> {
        let (fault, came_true) =
            self.faults.iter_mut().find(|(fault, came_true)| is_it(&fault.on, *came_true))?;
        *came_true += 1;
        Some(fault.act)
    }
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
        state.come_true(|on, _| match on {
            On::Calls { call: on, befalls } => {
                let now = befalls
                    .is_none_or(|(first, times)| (first..first.saturating_add(times)).contains(&number));
                *on == call && now
            }
            On::File { .. } => false,
        })
    }

    /// Says what befalls who asks for a file of the external system.
    pub(crate) fn befall_file(&self, file: u64) -> Option<Act> {
        self.lock().come_true(|on, came_true| match on {
            On::File { number, times } => *number == file && times.is_none_or(|times| came_true < times),
            On::Calls { .. } => false,
        })
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
    fn a_fault_of_a_file_befalls_that_file_and_as_often_as_it_says() {
        let fault = |text: &str| text.parse::<Fault>().unwrap();
        let texts = ["ext-404:0", "ext-429:2,3", "ext-short:2,2", "attachment-500:1"];
        let faults = Faults::new(&texts.map(fault));
        let status = |status, retry_after_seconds| Some(Act::Status { status, retry_after_seconds });
        assert_eq!(faults.befall(Call::Attachment), status(500, None));
        for _ in 0..3 {
            assert_eq!(faults.befall(Call::Attachment), None, "faults of files are no faults of calls");
            assert_eq!(faults.befall_file(0), status(404, None));
            assert_eq!(faults.befall_file(1), None);
        }
        let second: Vec<_> = (0..4).map(|_| faults.befall_file(2)).collect();
        assert_eq!(second, [status(429, Some(3)), Some(Act::Short), Some(Act::Short), None]);
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
            ("upload-503:1,0", "once or more often"),
            ("upload-short:1", "neither `lost` nor a status"),
            ("ext-404", "needs to know which file"),
            ("ext-lost:1", "neither `short` nor a status"),
            ("ext-429:x", "which file is a whole number"),
            ("ext-429:1,2,3", "one argument too many"),
        ] {
            let said = text.parse::<Fault>().unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
