//! Faults that can be set: which call gets which answer, instead of its proper one.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::call::Call;

/// The delay of a slow answer, by default.
const SLOW: Duration = Duration::from_secs(10);
/// How long after an answer the worker is killed, by default.
const KILL_LATER: Duration = Duration::from_millis(10);

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// It is answered with this status.
    Status {
        /// 400 to 599.
        status: u16,
        /// The `Retry-After` of the answer: seconds, or an HTTP date.
        retry_after: Option<String>,
        /// Whether it takes effect first.
        applied: bool,
    },
    /// The connection is closed without an answer.
    HangUp {
        /// Whether it takes effect first.
        applied: bool,
    },
    /// It takes effect, and is answered after this delay.
    Slow(Duration),
    /// The worker's process group is killed, and the connection closed.
    Kill {
        /// Whether it takes effect first.
        applied: bool,
    },
    /// It takes effect and is answered. After this delay the worker's process group is killed if it still runs.
    KillLater(Duration),
    /// Half of a file is sent, then the connection is closed. Only for files of the external system.
    Short,
}

/// What a fault applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum On {
    /// Calls of one kind, or of any: the first one, from 1, and how many from there on; `None`: all, until the fault
    /// is lifted.
    Calls { call: Option<Call>, befalls: Option<(u64, u64)> },
    /// A file of the external system: the first times that it is requested; `None`: always, until the fault is
    /// lifted.
    File { number: u64, times: Option<u64> },
}

/// A fault: one call or several, and what happens to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    text: String,
    on: On,
    act: Act,
}

impl Act {
    /// The text of the fault. A duration is omitted if reading the text back gives the same one.
    pub fn word(&self) -> String {
        match self {
            Act::Status { status, retry_after, applied } => {
                let after = retry_after.as_deref().map(|after| format!("-after-{after}")).unwrap_or_default();
                format!("{status}{}{after}", if *applied { "-applied" } else { "" })
            }
            Act::HangUp { applied: true } => "lost".to_owned(),
            Act::HangUp { applied: false } => "hangup".to_owned(),
            Act::Slow(_) => "slow".to_owned(),
            Act::Kill { applied: true } => "kill-after".to_owned(),
            Act::Kill { applied: false } => "kill-before".to_owned(),
            Act::KillLater(_) => "kill-later".to_owned(),
            Act::Short => "short".to_owned(),
        }
    }
}

impl Fault {
    /// A fault for the call with this number among all calls, from 1.
    pub fn at(number: u64, act: Act) -> Self {
        let on = On::Calls { call: None, befalls: Some((number, 1)) };
        Self { text: format!("any-{}:{number}", act.word()), on, act }
    }

    /// A fault for the call with this number among those of its kind, from 1.
    pub fn of(call: Call, number: u64, act: Act) -> Self {
        let on = On::Calls { call: Some(call), befalls: Some((number, 1)) };
        Self { text: format!("{call}-{}:{number}", act.word()), on, act }
    }
}

/// What happens to a call, by the fault's name.
fn act_of(word: &str) -> Option<Act> {
    let (status, applied) = word.strip_suffix("-applied").map_or((word, false), |status| (status, true));
    if let Ok(status @ 400..600) = status.parse() {
        return Some(Act::Status { status, retry_after: None, applied });
    }
    match word {
        "lost" => Some(Act::HangUp { applied: true }),
        "hangup" => Some(Act::HangUp { applied: false }),
        "slow" => Some(Act::Slow(SLOW)),
        "kill-before" => Some(Act::Kill { applied: false }),
        "kill-after" => Some(Act::Kill { applied: true }),
        "kill-later" => Some(Act::KillLater(KILL_LATER)),
        _ => None,
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, arguments) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let mut arguments = arguments.into_iter().flat_map(|arguments| arguments.split(',')).map(str::trim);
        let known = || {
            let known: Vec<&str> = Call::ALL.into_iter().map(Call::name).collect();
            format!("one of {}, or any", known.join(", "))
        };
        let call_named = |call: &str| match call {
            "any" => Ok(None),
            call => Call::named(call)
                .map(Some)
                .ok_or_else(|| format!("{call:?} is not a call: expected {}", known())),
        };
        let of_file = name.strip_prefix("ext-");
        let limited = name == "429" || name == "ext-429";
        // The number is that of a file, not of a call.
        let (call, action) = if name == "429" {
            let call = arguments.next().ok_or("429 needs the name of a call: 429:upload,3,1")?;
            (Some(call_named(call)?), "429")
        } else if let Some(action) = of_file {
            (None, action)
        } else {
            // Names of calls contain hyphens, too: the longest name that fits is used.
            let called = Call::ALL.into_iter().map(Call::name).chain(["any"]);
            let longest = called
                .filter_map(|call| name.strip_prefix(call)?.strip_prefix('-').map(|action| (call, action)))
                .max_by_key(|(call, _)| call.len());
            let (call, action) = match longest {
                Some(found) => found,
                None => name
                    .rsplit_once('-')
                    .ok_or_else(|| format!("{name:?} is not a fault: write for example upload-503:2"))?,
            };
            (Some(call_named(call)?), action)
        };
        let mut number = |what: &str| {
            let Some(text) = arguments.next() else { return Ok(None) };
            let parsed = text.parse::<u64>().ok();
            parsed.map(Some).ok_or_else(|| format!("{what} is a whole number, not {text:?}"))
        };
        let first = number(if call.is_some() { "which call" } else { "which file" })?;
        let (times, seconds) =
            if limited { (Some(1), number("the seconds to wait")?) } else { (number("how often")?, None) };
        let is_call = call.is_some();
        let on = match (call, first) {
            (Some(_), Some(0)) => return Err("calls are counted from 1".to_owned()),
            (Some(call), first) => {
                On::Calls { call, befalls: first.map(|first| (first, times.unwrap_or(1))) }
            }
            (None, Some(number)) => On::File { number, times },
            (None, None) => return Err(format!("{name} needs the number of a file: {name}:7")),
        };
        if times == Some(0) {
            return Err("a fault must come true at least once".to_owned());
        }
        if let Some(more) = arguments.next() {
            return Err(format!("unexpected argument {more:?}"));
        }
        let act = match act_of(action) {
            Some(Act::Status { status, applied, .. }) if is_call || !applied => {
                let retry_after = seconds.map(|seconds| seconds.to_string());
                Act::Status { status, retry_after, applied }
            }
            Some(act) if is_call => act,
            None if !is_call && action == "short" => Act::Short,
            _ if is_call => {
                return Err(format!(
                    "{action:?} is neither `lost`, `hangup`, `slow`, `kill-before`, `kill-after`, `kill-later` nor a status \
                     from 400 to 599"
                ));
            }
            _ => return Err(format!("{action:?} is neither `short` nor a status from 400 to 599")),
        };
        Ok(Self { text: text.to_owned(), on, act })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What happens to one call.
#[derive(Debug, Clone)]
pub(crate) struct Befallen {
    /// The text of the fault.
    pub(crate) fault: String,
    pub(crate) act: Act,
}

/// The faults that are set, and how often each came true.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: Vec<(Fault, u64)>,
    /// The number of calls so far, by index in [`Call::ALL`].
    calls: [u64; Call::ALL.len()],
    /// The number of calls so far, except for files.
    all: u64,
}

impl State {
    /// Finds the first fault for which this is true, with how often it came true, and counts it once more.
    fn come_true(&mut self, is_it: impl Fn(&On, u64) -> bool) -> Option<Befallen> {
        let (fault, came_true) =
            self.faults.iter_mut().find(|(fault, came_true)| is_it(&fault.on, *came_true))?;
        *came_true += 1;
        Some(Befallen { fault: fault.text.clone(), act: fault.act.clone() })
    }
}

impl Faults {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let set = Self::default();
        set.set(faults);
        set
    }

    /// Replaces the faults, and counts calls from 1 again.
    pub(crate) fn set(&self, faults: &[Fault]) {
        let faults = faults.iter().map(|fault| (fault.clone(), 0)).collect();
        *self.lock() = State { faults, ..State::default() };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call. Returns its number among all, and what happens to it.
    pub(crate) fn befall(&self, call: Call) -> (u64, Option<Befallen>) {
        let mut state = self.lock();
        let place = Call::ALL.iter().position(|known| *known == call).unwrap_or(0);
        let Some(calls) = state.calls.get_mut(place) else { return (0, None) };
        *calls += 1;
        let of_kind = *calls;
        let is_platform = call != Call::Attachment;
        state.all += u64::from(is_platform);
        let of_all = state.all;
        let befallen = state.come_true(|on, _| match on {
            On::Calls { call: on, befalls } => {
                let number = if on.is_some() { of_kind } else { of_all };
                let is_meant = on.map_or(is_platform, |on| on == call);
                let now = befalls
                    .is_none_or(|(first, times)| (first..first.saturating_add(times)).contains(&number));
                is_meant && now
            }
            On::File { .. } => false,
        });
        (if is_platform { of_all } else { 0 }, befallen)
    }

    /// What happens to a request for a file of the external system.
    pub(crate) fn befall_file(&self, file: u64) -> Option<Act> {
        let befallen = self.lock().come_true(|on, came_true| match on {
            On::File { number, times } => *number == file && times.is_none_or(|times| came_true < times),
            On::Calls { .. } => false,
        });
        befallen.map(|befallen| befallen.act)
    }

    pub(crate) fn add(&self, faults: Vec<Fault>) {
        self.lock().faults.extend(faults.into_iter().map(|fault| (fault, 0)));
    }

    /// Lifts the fault with this text, or all.
    pub(crate) fn lift(&self, text: Option<&str>) {
        self.lock().faults.retain(|(fault, _)| text.is_some_and(|text| fault.text != text));
    }

    /// The number of calls so far, and the faults with how often each came true.
    pub(crate) fn report(&self) -> Value {
        let state = self.lock();
        let faults: Vec<Value> = state
            .faults
            .iter()
            .map(|(fault, came_true)| json!({ "fault": fault.to_string(), "came_true": came_true }))
            .collect();
        let calls: serde_json::Map<String, Value> = Call::ALL
            .into_iter()
            .zip(state.calls)
            .map(|(call, calls)| (call.name().to_owned(), calls.into()))
            .collect();
        json!({ "faults": faults, "calls": calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn befall(faults: &Faults, call: Call) -> Option<Act> {
        faults.befall(call).1.map(|befallen| befallen.act)
    }

    #[test]
    fn a_fault_befalls_the_calls_that_it_says_and_no_other() {
        let fault = |text: &str| text.parse::<Fault>().unwrap();
        let faults = Faults::new(&[fault("upload-503:2,2"), fault("429:confirm,1,7"), fault("message-500")]);
        let status = |status, seconds: Option<u64>| {
            let retry_after = seconds.map(|seconds| seconds.to_string());
            Some(Act::Status { status, retry_after, applied: false })
        };
        let uploads: Vec<_> = (0..5).map(|_| befall(&faults, Call::Upload)).collect();
        assert_eq!(uploads, [None, status(503, None), status(503, None), None, None]);
        assert_eq!(befall(&faults, Call::Confirm), status(429, Some(7)));
        assert_eq!(befall(&faults, Call::Confirm), None);
        assert_eq!(befall(&faults, Call::Message), status(500, None));
        assert_eq!(befall(&faults, Call::Message), status(500, None));
        faults.lift(Some("message-500"));
        assert_eq!(befall(&faults, Call::Message), None);
        faults.add(vec![fault("message-lost:4")]);
        assert_eq!(befall(&faults, Call::Message), Some(Act::HangUp { applied: true }));
        let report = faults.report();
        assert_eq!(report["calls"]["upload"], 5);
        assert_eq!(report["faults"][0], json!({ "fault": "upload-503:2,2", "came_true": 2 }));
    }

    #[test]
    fn a_fault_of_a_file_befalls_that_file_and_as_often_as_it_says() {
        let fault = |text: &str| text.parse::<Fault>().unwrap();
        let texts = ["ext-404:0", "ext-429:2,3", "ext-short:2,2", "attachment-500:1"];
        let faults = Faults::new(&texts.map(fault));
        let status = |status, seconds: Option<u64>| {
            let retry_after = seconds.map(|seconds| seconds.to_string());
            Some(Act::Status { status, retry_after, applied: false })
        };
        assert_eq!(befall(&faults, Call::Attachment), status(500, None));
        for _ in 0..3 {
            assert_eq!(befall(&faults, Call::Attachment), None, "faults of files are no faults of calls");
            assert_eq!(faults.befall_file(0), status(404, None));
            assert_eq!(faults.befall_file(1), None);
        }
        let second: Vec<_> = (0..4).map(|_| faults.befall_file(2)).collect();
        assert_eq!(second, [status(429, Some(3)), Some(Act::Short), Some(Act::Short), None]);
    }

    #[test]
    fn a_fault_of_any_call_is_told_by_its_number_among_all_and_files_are_none() {
        let kill = Fault::at(3, Act::Kill { applied: true });
        assert_eq!(kill.to_string().parse::<Fault>().unwrap(), kill);
        let faults = Faults::new(&[kill, "state-get-503-applied:2".parse().unwrap()]);
        assert_eq!(faults.befall(Call::StateGet).0, 1);
        assert_eq!(faults.befall(Call::Attachment).0, 0);
        let applied = Act::Status { status: 503, retry_after: None, applied: true };
        assert_eq!(befall(&faults, Call::StateGet), Some(applied));
        assert_eq!(befall(&faults, Call::Attachment), None);
        assert_eq!(befall(&faults, Call::Message), Some(Act::Kill { applied: true }));
        assert_eq!(befall(&faults, Call::Message), None);
    }

    #[test]
    fn what_is_no_fault_says_why() {
        for (text, reason) in [
            ("upload", "is not a fault"),
            ("download-200", "neither `lost`,"),
            ("dance-500", "is not a call"),
            ("upload-503:x", "which call is a whole number"),
            ("upload-503:0", "counted from 1"),
            ("upload-503:1,2,3", "unexpected argument"),
            ("429", "needs the name of a call"),
            ("429:upload,1,soon", "the seconds to wait is a whole number"),
            ("upload-503:1,0", "at least once"),
            ("upload-short:1", "neither `lost`,"),
            ("ext-404", "needs the number of a file"),
            ("ext-lost:1", "neither `short` nor a status"),
            ("ext-429:x", "which file is a whole number"),
            ("ext-429:1,2,3", "unexpected argument"),
        ] {
            let said = text.parse::<Fault>().unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
