//! The commands that change a store, or a worker state that was taken from the platform. Each says what it would
//! change, asks, makes a copy, and makes the change.

use std::borrow::Cow;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clap::{Args, Subcommand};
use highwater::airdrop::SavedState;
use highwater::html::grouped;
use highwater::inspect::{Snapshot, Source, copy_file};
use highwater::mend::{Compaction, Mend, Plan, Requeue, RewindTo, UnitFile};
use highwater::{Error, Store};
use serde::Serialize;

use crate::ending::{Exit, Failure, complain};
use crate::files::{replace, worker_state};
use crate::stores::{open, unit_id};
use crate::text::{Screen, count, folded, json_line, shell_path, shell_word, stdout, time, visible};

#[derive(Debug, Subcommand)]
pub(crate) enum Mending {
    /// Sets a sync unit back to the state in which a finished run left it
    #[command(after_help = "\
Example:
  highwater-dump rewind state.redb acme/tickets --to 2026-01-02 --dry-run

An open run is abandoned. The watermark and the bookmarks are set as the run left them.
Bookmarks are kept for the last 8 finished runs; before those, the unit has none.
STORE may be a worker state as the platform returns it: the file is changed in place.")]
    Rewind {
        #[command(flatten)]
        unit: Unit,
        /// A run's id (the state in which that run left the unit), or a time (the state after the last run finished
        /// by then): 2026-01-02, 2026-01-02T03:04 or with seconds, in UTC unless it has an offset
        #[arg(long, value_name = "RUN|TIME", allow_hyphen_values = true)]
        to: String,
        #[command(flatten)]
        how: How,
    },
    /// Makes a stream begin with a cursor in the next run
    #[command(after_help = "\
Example:
  highwater-dump set-cursor state.redb acme/tickets issues '{\"page\":41}'

The cursor must have the shape of the last one, unless --force is given. Each run begins
with it until one has finished; the cursor null removes it.")]
    SetCursor {
        #[command(flatten)]
        unit: Unit,
        /// The stream
        stream: String,
        /// The cursor, as JSON: a string stands in quotes
        #[arg(allow_hyphen_values = true)]
        cursor: String,
        /// Set it even if the stream is unknown, or its cursors had another shape
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        how: How,
    },
    /// Makes the next run extract everything
    #[command(after_help = "\
Example:
  highwater-dump reset state.redb acme/tickets --keep-attachments

Removes the watermark, the bookmarks and the cursors that were set; an open run is
abandoned. The ledger and the extractor's own values are kept.")]
    Reset {
        #[command(flatten)]
        unit: Unit,
        /// Settled attachments stay settled, unless the source names them with another url, name or date
        #[arg(long)]
        keep_attachments: bool,
        /// Drops the extractor's own values too
        #[arg(long)]
        drop_values: bool,
        #[command(flatten)]
        how: How,
    },
    /// Queues failed attachments again
    #[command(after_help = "\
Example:
  highwater-dump requeue state.redb acme/tickets --reason 'status 503'

Without --id and --reason, all of them are queued. The next run that extracts attachments
streams them. If none matches, the exit code is 1.")]
    Requeue {
        #[command(flatten)]
        unit: Unit,
        /// Queue the attachment with this id; may be repeated
        #[arg(long = "id", value_name = "ID")]
        ids: Vec<String>,
        /// Queue those whose reason contains this text
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Abandons the open run of a sync unit
    #[command(after_help = "\
Example:
  highwater-dump abandon state.redb acme/tickets

The watermark stays as it is, so the next run extracts all of this one again, also what it
has announced.")]
    Abandon {
        #[command(flatten)]
        unit: Unit,
        #[command(flatten)]
        how: How,
    },
    /// Forgets a whole sync unit
    #[command(after_help = "\
Example:
  highwater-dump forget state.redb acme/tickets

The ids of its last 64 runs are kept, so that late events are recognised. So is the list of
what operators did (`acts`).")]
    Forget {
        #[command(flatten)]
        unit: Unit,
        #[command(flatten)]
        how: How,
    },
    /// Writes a sync unit to a new file, for another store to import
    #[command(after_help = "\
Example:
  highwater-dump export state.redb acme/tickets tickets.jsonl

Refused while a run is open. The store is not changed.")]
    Export {
        #[command(flatten)]
        unit: Unit,
        /// The file; it must not exist yet
        file: PathBuf,
    },
    /// Imports a sync unit that was exported
    #[command(after_help = "\
Example:
  highwater-dump import other.redb tickets.jsonl

A store that does not exist is created.")]
    Import {
        /// The store file
        store: PathBuf,
        /// The file that `export` wrote
        file: PathBuf,
        /// Replaces the unit that the store has
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        how: How,
    },
    /// Lists what operators did to a store and its units
    #[command(after_help = "\
Example:
  highwater-dump acts state.redb

The newest 64 of each unit are kept, even if the unit was forgotten.")]
    Acts {
        /// The store file, or a file with a worker state
        store: PathBuf,
        /// Only what was done to this sync unit; for a worker state, the name to give it
        #[arg(long, value_name = "ID")]
        unit: Option<String>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Removes unused space from a store file
    #[command(after_help = "\
Example:
  highwater-dump compact state.redb --dry-run

The space to be freed is measured on a copy in the directory for temporary files.")]
    Compact {
        /// The store file
        store: PathBuf,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Unit {
    /// The store file, or a file with the unit's worker state
    store: PathBuf,
    /// The sync unit
    unit: String,
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// Print exactly what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    /// Where to put the copy that is made first: a directory, or a file that does not exist yet [default: beside
    /// STORE]
    #[arg(long, value_name = "PATH")]
    backup: Option<PathBuf>,
    /// Your name, for the list of what was done [default: USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Print one JSON object: the plan, whether it was done, and the copy
    #[arg(long)]
    json: bool,
}

/// What a command did, for a script.
#[derive(Debug, Serialize)]
struct Outcome<'a, P> {
    kind: &'static str,
    plan: &'a P,
    done: bool,
    backup: Option<String>,
    /// Copies that earlier commands made of the same file, in the same folder.
    older_backups: Option<Copies>,
}

/// Some copies of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Copies {
    files: u64,
    /// Bytes on the disk.
    bytes: u64,
}

impl Copies {
    /// The copies beside a new one, of the file whose name is `name`.
    fn beside(new: &Path, name: &str) -> Self {
        let mut copies = Self { files: 0, bytes: 0 };
        let folder = new.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let prefix = format!("{name}.before-");
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_copy = file.file_name().to_string_lossy().starts_with(&prefix);
            if let Some(about) =
                file.metadata().ok().filter(|_| is_copy && Some(&*file.file_name()) != new.file_name())
            {
                copies.files += 1;
                copies.bytes += bytes_on_disk(&about);
            }
        }
        copies
    }
}

#[cfg(unix)]
fn bytes_on_disk(about: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(about) * 512
}

#[cfg(not(unix))]
fn bytes_on_disk(about: &fs::Metadata) -> u64 {
    about.len()
}

impl Mending {
    pub(crate) fn run(self) -> Result<Exit, Failure> {
        match self {
            Mending::Rewind { to, .. } if to.starts_with("--") => {
                Err(Failure::Usage(format!("--to needs a run or a time, not {to}")))
            }
            Mending::Rewind { unit, to, how } => {
                unit.mend(&how, "rewind", &Act::Mend(Mend::Rewind { to: rewind_to(&to) }))
            }
            Mending::SetCursor { unit, stream, cursor, force, how } => {
                unit.mend(&how, "set-cursor", &Act::Mend(Mend::SetCursor { stream, cursor, force }))
            }
            Mending::Reset { unit, keep_attachments, drop_values, how } => {
                unit.mend(&how, "reset", &Act::Mend(Mend::Reset { keep_attachments, drop_values }))
            }
            Mending::Requeue { unit, ids, reason, how } => {
                unit.mend(&how, "requeue", &Act::Mend(Mend::Requeue(Requeue { ids, reason })))
            }
            Mending::Abandon { unit, how } => unit.mend(&how, "abandon", &Act::Mend(Mend::Abandon)),
            Mending::Forget { unit, how } => unit.mend(&how, "forget", &Act::Mend(Mend::Forget)),
            Mending::Export { unit, file } => export(&unit, &file),
            Mending::Import { store, file, replace, how } => {
                let file = UnitFile::open(file)?;
                let unit = Unit { store, unit: file.sync_unit().to_owned() };
                unit.mend(&how, "import", &Act::Import(file, replace))
            }
            Mending::Acts { store, unit, json } => acts(&store, unit.as_deref(), json),
            Mending::Compact { store, how } => compact(&store, &how),
        }
    }
}

/// A time if it is one, else the id of a run.
fn rewind_to(text: &str) -> RewindTo {
    let naive = [
        "%Y-%m-%dT%H:%M",
        "%Y-%m-%dT%H:%MZ",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S%.f",
    ];
    let with_zone =
        DateTime::parse_from_rfc3339(text).or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M%:z"));
    let time = with_zone
        .map(|at| at.to_utc())
        .ok()
        .or_else(|| {
            naive
                .iter()
                .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
                .map(|at| at.and_utc())
        })
        .or_else(|| Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?.and_utc()));
    time.map_or_else(|| RewindTo::Run(text.to_owned()), RewindTo::Time)
}

/// What to do to a unit.
enum Act {
    Mend(Mend),
    Import(UnitFile, bool),
}

impl Act {
    fn plan(&self, store: &Store, unit: &str) -> highwater::Result<Plan> {
        match self {
            Act::Mend(mend) => store.plan(unit, mend),
            Act::Import(file, replace) => store.plan_import(file, *replace),
        }
    }

    fn look(&self, snapshot: &mut Snapshot, unit: &str) -> highwater::Result<Plan> {
        match self {
            Act::Mend(mend) => snapshot.plan(unit, mend, Utc::now()),
            Act::Import(file, replace) => snapshot.plan_import(file, *replace),
        }
    }

    fn carry_out(&self, store: &Store, plan: &Plan, by: &str) -> highwater::Result<()> {
        match self {
            Act::Mend(_) => store.mend(plan, by),
            Act::Import(file, _) => store.import(file, plan, by),
        }
    }
}

impl Unit {
    fn mend(&self, how: &How, command: &str, act: &Act) -> Result<Exit, Failure> {
        if !self.store.exists() && Path::new(&self.unit).is_file() {
            return Err(Failure::Usage(format!(
                "the store comes before the sync unit: highwater-dump {command} {} {}{}",
                shell_word(&self.unit),
                shell_path(&self.store),
                if matches!(command, "rewind" | "set-cursor") { " ..." } else { "" }
            )));
        }
        if let Some(text) = state_of(&self.store)? {
            return self.mend_worker_state(how, command, act, &text);
        }
        let imports = matches!(act, Act::Import(..));
        let creates = imports && !self.store.exists();
        // Planned from a snapshot, so the store is not touched if nothing is changed in the end.
        let (plan, is_open) = if creates {
            let dir = tempfile::tempdir()?;
            (act.plan(&Store::open(dir.path().join("state.redb"))?, &self.unit)?, false)
        } else {
            let mut snapshot = open(&self.store)?;
            let unit =
                if imports { self.unit.clone() } else { unit_id(&mut snapshot, &self.store, &self.unit)? };
            let plan = act.look(&mut snapshot, &unit)?;
            (plan, matches!(snapshot.source(), Source::Copy { .. }))
        };
        self.check_match(act, &plan)?;
        if how.dry_run || plan.changes.is_empty() {
            return how.say(&plan, &plan.act, &plan.lines(), false, None);
        }
        if is_open {
            return Err(Error::InUse { path: self.store.clone() }.into());
        }
        how.ask(&plan.act, &plan.lines())?;
        let store = Store::open(&self.store)?;
        let backup = if creates { None } else { Some(how.back_up(&self.store, command, true)?) };
        act.carry_out(&store, &plan, &how.by())?;
        how.say(
            &plan,
            &plan.act,
            &plan.lines(),
            true,
            backup.as_deref().map(|copy| (copy, file_name(&self.store))),
        )
    }

    /// Fails if failed attachments were selected, and none is.
    fn check_match(&self, act: &Act, plan: &Plan) -> Result<(), Failure> {
        let Act::Mend(Mend::Requeue(Requeue { ids, reason })) = act else { return Ok(()) };
        if !plan.changes.is_empty() || (ids.is_empty() && reason.is_none()) {
            return Ok(());
        }
        let (store, unit) = (shell_path(&self.store), shell_word(&plan.sync_unit));
        Err(Failure::Absent(format!(
            "nothing to do to {}: no failed attachment matches; `highwater-dump attachments {store} --unit {unit} --failed` lists \
             those that failed",
            plan.act
        )))
    }

    /// Changes a worker state: it is read into a store in memory, and changed by the same code.
    fn mend_worker_state(&self, how: &How, command: &str, act: &Act, text: &str) -> Result<Exit, Failure> {
        let state = SavedState::read(text, &self.unit)?;
        let plan = act.plan(state.store(), &self.unit)?;
        self.check_match(act, &plan)?;
        if how.dry_run || plan.changes.is_empty() {
            return how.say(&plan, &plan.act, &plan.lines(), false, None);
        }
        how.ask(&plan.act, &plan.lines())?;
        act.carry_out(state.store(), &plan, &how.by())?;
        let mended = state.to_text()?;
        let backup = how.back_up(&self.store, command, false)?;
        replace(&self.store, mended.as_bytes())
            .map_err(|error| cannot("write the worker state", &self.store, error))?;
        complain(&format!(
            "{}: put it back as the worker state of {}; a worker that holds the unit now stops at its next save",
            self.store.display(),
            self.unit
        ));
        how.say(&plan, &plan.act, &plan.lines(), true, Some((&backup, file_name(&self.store))))
    }
}

/// The text of a file that is a worker state and not a store.
pub(crate) fn state_of(path: &Path) -> Result<Option<String>, Failure> {
    worker_state(path).map_err(|error| cannot("read", path, error))
}

fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn cannot(action: &str, path: &Path, error: io::Error) -> Failure {
    Failure::Store(Error::Io { action: format!("{action} {}", path.display()), source: error.into() })
}

impl How {
    fn by(&self) -> String {
        let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let by = self.by.clone().or_else(|| named("USER")).or_else(|| named("LOGNAME"));
        by.unwrap_or_else(|| "(unknown)".to_owned())
    }

    /// Asks for confirmation.
    fn ask(&self, act: &str, lines: &[String]) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Absent(format!(
                "not done: {act}: there is no terminal to ask on; use --yes, or try --dry-run first"
            )));
        }
        let mut screen = io::stderr();
        words(&mut screen, act, lines)?;
        write!(screen, "Do it? [y/N] ")?;
        screen.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        Err(Failure::Absent("not done: nothing was changed".to_owned()))
    }

    /// Copies a file before it is changed; returns the path of the copy.
    fn back_up(&self, path: &Path, command: &str, is_store: bool) -> Result<PathBuf, Failure> {
        let failed = |to: &Path, error: io::Error| {
            let action = format!("copy {} to {}, so nothing was changed", path.display(), to.display());
            Failure::Store(Error::Io { action, source: error.into() })
        };
        let name =
            format!("{}.before-{command}-{}", file_name(path), Utc::now().format("%Y%m%dT%H%M%S%.3fZ"));
        let to = match &self.backup {
            Some(to) if to.is_dir() => to.join(name),
            Some(to) => to.clone(),
            None => path.with_file_name(name),
        };
        let directory = match to.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let copy = tempfile::NamedTempFile::new_in(directory).map_err(|error| failed(&to, error))?;
        let copied = || -> io::Result<()> {
            let from = fs::File::open(path)?;
            copy_file(&from, copy.as_file())?;
            copy.as_file().set_permissions(from.metadata()?.permissions())?;
            copy.as_file().sync_all()
        };
        copied().map_err(|error| failed(&to, error))?;
        if is_store {
            // Every page of the copy is verified, and the copy is closed cleanly.
            drop(Store::open(copy.path())?);
        }
        copy.persist_noclobber(&to).map_err(|error| failed(&to, error.error))?;
        // If the directory cannot be synced, the copy exists all the same.
        drop(fs::File::open(directory).and_then(|directory| directory.sync_all()));
        Ok(to)
    }

    /// Prints what was, or would be, done.
    fn say<P: Serialize>(
        &self,
        plan: &P,
        act: &str,
        lines: &[String],
        done: bool,
        backup: Option<(&Path, Cow<'_, str>)>,
    ) -> Result<Exit, Failure> {
        let mut out = stdout();
        let older_backups = backup.as_ref().map(|(copy, name)| Copies::beside(copy, name));
        if self.json {
            let backup = backup.map(|(copy, _)| copy.display().to_string());
            json_line(&mut out, &Outcome { kind: "mend", plan, done, backup, older_backups })?;
        } else {
            words(&mut out, act, lines)?;
            match backup {
                Some((copy, name)) => {
                    writeln!(out, "done; the copy made before: {}", visible(&copy.display().to_string()))?;
                    if let Some(Copies { files, bytes }) = older_backups.filter(|older| older.files > 0) {
                        let line = format!(
                            "{} of {name} beside it, {} bytes on the disk: delete what you do not need any more",
                            count(files, "older copy", "older copies"),
                            grouped(&bytes.to_string())
                        );
                        folded(&mut out, Screen::new(), "", "  ", &visible(&line))?;
                    }
                }
                None if done => writeln!(out, "done")?,
                None => writeln!(out, "nothing was changed")?,
            }
        }
        out.flush()?;
        Ok(Exit::Fine)
    }
}

/// Writes an act and its lines, folded to fit.
pub(crate) fn words(out: &mut impl Write, act: &str, lines: &[String]) -> io::Result<()> {
    let screen = Screen::new();
    folded(out, screen, "", "  ", &visible(act))?;
    lines.iter().try_for_each(|line| folded(out, screen, "  ", "    ", &visible(line)))
}

fn acts(path: &Path, unit: Option<&str>, json: bool) -> Result<Exit, Failure> {
    let acts = if let Some(text) = state_of(path)? {
        SavedState::read(&text, unit.unwrap_or("the unit"))?.store().acts(unit)?
    } else {
        let mut snapshot = open(path)?;
        // A unit that was forgotten has acts too.
        let named = unit.map(|unit| unit_id(&mut snapshot, path, unit).unwrap_or_else(|_| unit.to_owned()));
        snapshot.acts(named.as_deref())?
    };
    let mut out = stdout();
    for act in &acts {
        if json {
            json_line(&mut out, act)?;
        } else {
            words(&mut out, &format!("{} {}: {}", time(act.at), act.by, act.act), &act.changes)?;
        }
    }
    if acts.is_empty() && !json {
        writeln!(out, "nothing was changed by hand")?;
    }
    out.flush()?;
    Ok(Exit::Fine)
}

fn export(unit: &Unit, file: &Path) -> Result<Exit, Failure> {
    let rows = if let Some(text) = state_of(&unit.store)? {
        SavedState::read(&text, &unit.unit)?.store().export(&unit.unit, file)?
    } else {
        let mut snapshot = open(&unit.store)?;
        let id = unit_id(&mut snapshot, &unit.store, &unit.unit)?;
        snapshot.export(&id, file, Utc::now())?
    };
    let mut out = stdout();
    writeln!(out, "{}: {rows} rows of {}", visible(&file.display().to_string()), visible(&unit.unit))?;
    out.flush()?;
    Ok(Exit::Fine)
}

fn compact(path: &Path, how: &How) -> Result<Exit, Failure> {
    let measured = Compaction::measure(path)?;
    let act = format!("compact {}", path.display());
    let line = format!(
        "{} bytes become {}: {} bytes, {} %, are freed",
        measured.bytes,
        measured.bytes_after,
        measured.saves(),
        measured.saves() * 100 / measured.bytes.max(1)
    );
    if how.dry_run || measured.saves() == 0 {
        return how.say(&measured, &act, &[line], false, None);
    }
    how.ask(&act, std::slice::from_ref(&line))?;
    let mut store = Store::open(path)?;
    let backup = how.back_up(path, "compact", true)?;
    store.compact(&how.by())?;
    drop(store);
    how.say(&measured, &act, &[line], true, Some((&backup, file_name(path))))
}
