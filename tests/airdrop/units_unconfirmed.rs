//! External sync units are announced and never confirmed, wherever the extractor dies: there is no sync yet for which
//! their artifact could be confirmed.
//!
//! The bug behind it: after a kill between the commit of an upload's id and the commit of its state, the next life
//! took the upload for one whose confirmation was missing.

use std::io;
use std::sync::{Arc, Mutex};

use highwater::airdrop::{
    Context, Event, ExternalSyncUnit, Extractor, Listing, Platform, PlatformError, SealedMessage, Serve,
    SourceError, Upload,
};
use highwater::{ArtifactId, Disk, Page, Store};
use serde_json::{Value, json};

/// A disk in memory that is gone after so many syncs; what was written stays, as after a kill.
#[derive(Debug, Clone)]
struct Mortal {
    bytes: Arc<Mutex<Vec<u8>>>,
    syncs_left: Arc<Mutex<u64>>,
}

impl Disk for Mortal {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        out.copy_from_slice(&self.bytes.lock().unwrap()[at..at + out.len()]);
        Ok(())
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.alive()?;
        let at = usize::try_from(at).unwrap();
        self.bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.alive()?;
        self.bytes.lock().unwrap().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.alive()?;
        *self.syncs_left.lock().unwrap() -= 1;
        Ok(())
    }
}

impl Mortal {
    fn alive(&self) -> io::Result<()> {
        if *self.syncs_left.lock().unwrap() == 0 {
            return Err(io::Error::other("the process is dead"));
        }
        Ok(())
    }
}

/// What the platform was told.
#[derive(Debug, Default)]
struct Told {
    uploads: Mutex<u64>,
    confirmed: Mutex<Vec<ArtifactId>>,
    messages: Mutex<Vec<Value>>,
}

impl Platform for Told {
    fn upload(&self, _: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        let mut uploads = self.uploads.lock().unwrap();
        *uploads += 1;
        Ok(ArtifactId::new(format!("artifact-{uploads}")).unwrap())
    }
    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        self.confirmed.lock().unwrap().push(artifact.clone());
        Ok(())
    }
    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        self.messages.lock().unwrap().push(serde_json::from_str(&message.body).unwrap());
        Ok(())
    }
}

/// A source of one unit.
struct Source;

impl Extractor for Source {
    type Cursor = ();
    fn external_sync_units(&self, _: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        let text = "tickets".to_owned();
        let (id, name, description) = (text.clone(), text.clone(), text);
        Ok(vec![ExternalSyncUnit::new(id, name, description)])
    }
    fn metadata(&self, _: &Context) -> Result<Value, SourceError> {
        Ok(json!({}))
    }
    fn streams(&self, _: &Context) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }
    fn page(&self, _: &Context, _: &Listing, _: Option<()>) -> Result<Page<()>, SourceError> {
        Ok(Page::last())
    }
}

#[test]
fn external_sync_units_are_never_confirmed_wherever_the_extractor_dies() {
    let event = json!({ "payload": {
        "event_type": "EXTRACTION_EXTERNAL_SYNC_UNITS_START",
        "event_context": { "run_id": "r", "request_id": "q" },
    }});
    let event = Event::from_json(&event.to_string()).unwrap();
    let mut deaths_after_upload = 0;
    for syncs in 1.. {
        let disk = Mortal { bytes: Arc::default(), syncs_left: Arc::new(Mutex::new(syncs)) };
        let told = Told::default();
        let life = || {
            let store = Store::options().open_on(Box::new(disk.clone()), "in memory")?;
            Serve::new().inline(1).serve(&store, &told, &Source, &event)
        };
        let survived = life().is_ok();
        let uploads = *told.uploads.lock().unwrap();
        deaths_after_upload += u64::from(!survived && uploads > 0);
        *disk.syncs_left.lock().unwrap() = u64::MAX;
        // On a bare disk, a kill while the store is created leaves no store. (A file gets its name only when it is
        // complete.)
        let Ok(again) = life() else {
            assert!(uploads == 0, "after {syncs} syncs the store cannot be opened");
            continue;
        };
        assert_eq!(told.confirmed.lock().unwrap().as_slice(), [], "after {syncs} syncs");
        let messages = told.messages.lock().unwrap();
        assert!(messages.iter().all(|message| *message == messages[0]), "after {syncs} syncs");
        assert_eq!(messages[0]["event_data"]["artifacts"][0]["item_type"], "external_sync_units");
        assert_eq!(again.artifacts, 1);
        if survived {
            break;
        }
    }
    assert!(deaths_after_upload > 3, "only {deaths_after_upload} deaths after the upload");
}
