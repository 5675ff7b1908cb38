//! The engine of an async invocation: the blocking loop on its own thread, the author's futures on the caller's task.
//!
//! The loop is that of [`Serve::serve`], with an extractor that puts every call into a queue. The call becomes a
//! future of the author's, which is polled by the caller of the [`drive`] future; its result is returned to the
//! thread that made the call. So there is only one engine, and no runtime.
//!
//! A call that does not return ends in one of these ways:
//! - At the invocation's hard limit or, after a stop, at the moment when pages in progress are given up, the future
//!   is dropped.
//! - Dropping the `drive` future is a kill. From then on the engine stores nothing and does not call the platform:
//!   both its store and its platform are [`Cut`] off. A call or commit that was begun before may still complete, as
//!   when a process is killed. The thread ends after it, and nobody waits for it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{self, Poll, Waker};

use serde_json::Value;
use tracing::Span;

use crate::error::{BoxError, Error, Result, panic_text};
use crate::model::ArtifactId;
use crate::record::Attachment;
use crate::store::{Page, Store};

use super::answer::Outcome;
use super::async_extractor::{AsyncAttachmentBody, AsyncExtractor, Chunks};
use super::check::CheckPolicy;
use super::context::Context;
use super::deadlines::{Deadlines, LOOK_AGAIN};
use super::event::Event;
use super::extractor::{AttachmentBody, ExternalSyncUnit, Extractor};
use super::listing::Listing;
use super::platform::{Platform, PlatformError, SealedMessage, Upload, WorkerState};
use super::settings::Serve;
use super::source_error::{AttachmentError, SourceError};

impl Serve {
    /// Like [`Serve::serve`], for an async extractor. The engine runs on its own thread. The extractor's futures are
    /// polled by the caller of this one, on any runtime or none.
    ///
    /// Dropping the future is a kill: nothing is stored, confirmed or sent from then on, except the one call or
    /// commit in progress. The extractor's futures are dropped, too. The engine's thread ends when that call has
    /// ended, at the latest after the platform's own time-outs. Serving the same event again resumes, even on the
    /// same store before that thread has ended.
    ///
    /// ```
    /// use highwater::airdrop::{AsyncExtractor, Event, Platform, Serve};
    /// use highwater::Store;
    ///
    /// async fn answer<E: AsyncExtractor, P: Platform + Send + 'static>(
    ///     store: &Store,
    ///     platform: P,
    ///     extractor: &E,
    ///     event: &Event,
    /// ) -> highwater::Result<()> {
    ///     let outcome = Serve::new().concurrency(20).serve_async(store, platform, extractor, event).await?;
    ///     println!("{}", outcome.event_type);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Durability
    /// Like [`Serve::serve`].
    ///
    /// # Errors
    /// Those of [`Serve::serve`]; `Io` if no thread can be started.
    pub fn serve_async<'a, E: AsyncExtractor, P: Platform + Send + 'static>(
        &self,
        store: &Store,
        platform: P,
        extractor: &'a E,
        event: &Event,
    ) -> impl Future<Output = Result<Outcome>> + Send + use<'a, E, P> {
        let cut = Arc::new(AtomicBool::new(false));
        let store = store.until(&cut);
        let platform = Cut { platform, cut: Arc::clone(&cut) };
        let mut serve = self.clone();
        serve.stop = serve.stop.or(&cut);
        let event = event.clone();
        let engine = move |bridge: Bridge<E>| serve.serve(&store, &platform, &bridge, &event);
        async move { drive(extractor, cut, engine).await? }
    }
}

/// The future of a call to the author's extractor.
type Answering<'e, A> = Pin<Box<dyn Future<Output = A> + Send + 'e>>;

/// A call, to be made on the caller's task.
type Call<E> = Box<dyn for<'e> FnOnce(&'e E) -> Answering<'e, ()> + Send>;

/// A call in the queue, and whether its result is still wanted.
struct Asked<E> {
    call: Call<E>,
    awaited: Weak<()>,
}

/// The calls that an engine makes.
struct Queue<E> {
    state: Mutex<State<E>>,
}

struct State<E> {
    asked: VecDeque<Asked<E>>,
    /// The engine has ended.
    ended: bool,
    /// The calls are no longer answered.
    closed: bool,
    waker: Option<Waker>,
}

impl<E: Sync> Queue<E> {
    fn new() -> Self {
        let state = State { asked: VecDeque::new(), ended: false, closed: false, waker: None };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, and wakes the task that polls.
    fn change(&self, change: impl FnOnce(&mut State<E>)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Makes a call, and waits for its result, but not longer than `deadlines` allow.
    fn ask<A, X>(
        &self,
        deadlines: Option<&Deadlines>,
        call: impl for<'e> FnOnce(&'e E) -> Answering<'e, Result<A, X>> + Send + 'static,
    ) -> Result<A, X>
    where
        A: Send + 'static,
        X: From<String> + Send + 'static,
    {
        let waits = Arc::new(());
        let (tell, told) = sync_channel(1);
        let call: Call<E> = Box::new(move |extractor| {
            Box::pin(async move {
                let answer = match catch_unwind(AssertUnwindSafe(|| call(extractor))) {
                    Ok(future) => Caught(future).await,
                    Err(panic) => Err(panic_text(panic.as_ref())),
                };
                // The engine may have given up waiting.
                let _ = tell.send(answer);
            })
        });
        let awaited = Arc::downgrade(&waits);
        self.change(|state| {
            if !state.closed {
                state.asked.push_back(Asked { call, awaited });
            }
        });
        loop {
            match told.recv_timeout(LOOK_AGAIN) {
                Ok(Ok(answer)) => return answer,
                Ok(Err(panic)) => return Err(X::from(format!("the extractor panicked: {panic}"))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(X::from("the invocation was dropped".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) if deadlines.is_some_and(Deadlines::is_over) => {
                    drop(waits);
                    self.change(|_| {});
                    return Err(X::from(
                        "the extractor did not answer in the time of the invocation".to_owned(),
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// A future of the author's. If it panics, the result is an error.
struct Caught<'e, A>(Answering<'e, A>);

impl<A> Future for Caught<'_, A> {
    type Output = Result<A, String>;

    fn poll(mut self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(task))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic_text(panic.as_ref()))),
        }
    }
}

/// Cuts off an engine when it is dropped: its calls are no longer answered, and it does nothing more.
struct CutOff<E: Sync> {
    cut: Arc<AtomicBool>,
    queue: Arc<Queue<E>>,
}

impl<E: Sync> Drop for CutOff<E> {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Release);
        let mut asked = VecDeque::new();
        self.queue.change(|state| {
            state.closed = true;
            asked = std::mem::take(&mut state.asked);
        });
    }
}

/// Runs an engine on its own thread, and polls the futures of its calls until it has ended. If dropped before that,
/// it sets `cut`.
///
/// # Errors
/// `Io` if no thread can be started.
pub(crate) async fn drive<E: AsyncExtractor, T: Send + 'static>(
    extractor: &E,
    cut: Arc<AtomicBool>,
    engine: impl FnOnce(Bridge<E>) -> T + Send + 'static,
) -> Result<T> {
    let queue = Arc::new(Queue::new());
    let bridge = Bridge { queue: Arc::clone(&queue), policy: extractor.check_policy() };
    let (asks, span) = (Arc::clone(&queue), Span::current());
    let (tell, told) = sync_channel(1);
    let run = move || {
        let result = catch_unwind(AssertUnwindSafe(|| span.in_scope(|| engine(bridge))));
        let _ = tell.send(result);
        asks.change(|state| state.ended = true);
    };
    let thread = std::thread::Builder::new().name("highwater".to_owned());
    thread.spawn(run).map_err(|error| Error::io("start the thread of an invocation", error))?;
    let mut running: Vec<(Answering<'_, ()>, Weak<()>)> = Vec::new();
    // Last, so that the engine is cut off before the futures that it waits for are dropped.
    let cut_off = CutOff { cut, queue };
    poll_fn(|task| {
        loop {
            let asked = {
                let mut state = cut_off.queue.lock();
                if state.ended {
                    return Poll::Ready(());
                }
                state.waker = Some(task.waker().clone());
                std::mem::take(&mut state.asked)
            };
            let none_came = asked.is_empty();
            running.extend(asked.into_iter().map(|Asked { call, awaited }| (call(extractor), awaited)));
            running.retain_mut(|(future, awaited)| {
                awaited.strong_count() > 0 && future.as_mut().poll(task).is_pending()
            });
            // Calls from now on wake the task.
            if none_came {
                return Poll::Pending;
            }
        }
    })
    .await;
    match told.recv() {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(panic)) => resume_unwind(panic),
        // It reports its result before it ends.
        Err(error) => Err(Error::io("learn how an invocation ended", error)),
    }
}

/// The extractor as the engine sees it: each call goes into the queue.
pub(crate) struct Bridge<E: AsyncExtractor> {
    queue: Arc<Queue<E>>,
    policy: CheckPolicy,
}

impl<E: AsyncExtractor> Extractor for Bridge<E> {
    type Cursor = E::Cursor;

    fn external_sync_units(&self, context: &Context) -> Result<Vec<ExternalSyncUnit>, SourceError> {
        let own = context.clone();
        self.queue.ask(Some(&context.deadlines), |extractor| Box::pin(extractor.external_sync_units(own)))
    }

    fn metadata(&self, context: &Context) -> Result<Value, SourceError> {
        let own = context.clone();
        self.queue.ask(Some(&context.deadlines), |extractor| Box::pin(extractor.metadata(own)))
    }

    fn initial_domain_mapping(&self, context: &Context) -> Result<Option<Value>, SourceError> {
        let own = context.clone();
        self.queue.ask(Some(&context.deadlines), |extractor| Box::pin(extractor.initial_domain_mapping(own)))
    }

    fn check_policy(&self) -> CheckPolicy {
        self.policy
    }

    fn streams(&self, context: &Context) -> Result<Vec<String>, SourceError> {
        let own = context.clone();
        self.queue.ask(Some(&context.deadlines), |extractor| Box::pin(extractor.streams(own)))
    }

    fn page(
        &self,
        context: &Context,
        listing: &Listing,
        cursor: Option<E::Cursor>,
    ) -> Result<Page<E::Cursor>, SourceError> {
        let (own, listing) = (context.clone(), listing.clone());
        self.queue.ask(Some(&context.deadlines), |extractor| Box::pin(extractor.page(own, listing, cursor)))
    }

    fn can_refetch(&self, item_type: &str) -> bool {
        let item_type = item_type.to_owned();
        let asked: Result<bool, String> =
            self.queue.ask(None, |extractor| Box::pin(async move { Ok(extractor.can_refetch(&item_type)) }));
        // A panic here would also happen in the next call.
        asked.unwrap_or(false)
    }

    fn refetch(
        &self,
        context: &Context,
        item_type: &str,
        ids: &[String],
    ) -> Result<Page<E::Cursor>, SourceError> {
        let (own, item_type, ids) = (context.clone(), item_type.to_owned(), ids.to_vec());
        self.queue.ask(Some(&context.deadlines), |extractor| Box::pin(extractor.refetch(own, item_type, ids)))
    }

    fn open_attachment(
        &self,
        context: &Context,
        attachment: &Attachment,
    ) -> Result<AttachmentBody, AttachmentError> {
        let (own, attachment) = (context.clone(), attachment.clone());
        let AsyncAttachmentBody { chunks, length_bytes, content_type } =
            self.queue.ask(Some(&context.deadlines), |extractor| {
                Box::pin(extractor.open_attachment(own, attachment))
            })?;
        let reader = ChunkReader {
            queue: Arc::clone(&self.queue),
            deadlines: Arc::clone(&context.deadlines),
            chunks: Some(chunks),
            chunk: Vec::new(),
            read: 0,
        };
        Ok(AttachmentBody { reader: Box::new(reader), length_bytes, content_type })
    }
}

/// Reads the chunks of a body, each requested when the one before is read.
struct ChunkReader<E> {
    queue: Arc<Queue<E>>,
    deadlines: Arc<Deadlines>,
    /// `None` once they have ended, or one failed.
    chunks: Option<Chunks>,
    chunk: Vec<u8>,
    read: usize,
}

impl<E: Sync + 'static> ChunkReader<E> {
    /// The next chunk, and the rest of the stream.
    fn next(&self, mut chunks: Chunks) -> Result<(Chunks, Option<Vec<u8>>), BoxError> {
        self.queue.ask(Some(&self.deadlines), |_| {
            Box::pin(async move {
                let chunk = poll_fn(|task| chunks.as_mut().poll_next(task)).await.transpose()?;
                Ok((chunks, chunk))
            })
        })
    }
}

impl<E: Sync + 'static> Read for ChunkReader<E> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() {
            let Some(chunks) = self.chunks.take() else { return Ok(0) };
            let (chunks, Some(chunk)) = self.next(chunks).map_err(io::Error::other)? else { return Ok(0) };
            (self.chunks, self.chunk, self.read) = (Some(chunks), chunk, 0);
        }
        let left = self.chunk.get(self.read..).unwrap_or_default();
        let count = (&*left).read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

/// A platform that is not called any more once the flag is set.
struct Cut<P> {
    platform: P,
    cut: Arc<AtomicBool>,
}

impl<P: Platform> Cut<P> {
    /// The platform, unless the engine was cut off. The error that is returned then is stored nowhere.
    fn platform(&self) -> Result<&P, PlatformError> {
        if self.cut.load(Ordering::Acquire) {
            let reason = "the invocation was dropped, and the call was not made".to_owned();
            return Err(PlatformError::Refused { status: 499, reason });
        }
        Ok(&self.platform)
    }
}

impl<P: Platform> Platform for Cut<P> {
    fn upload(&self, upload: Upload<'_>) -> Result<ArtifactId, PlatformError> {
        self.platform()?.upload(upload)
    }

    fn confirm(&self, artifact: &ArtifactId) -> Result<(), PlatformError> {
        self.platform()?.confirm(artifact)
    }

    fn send(&self, message: &SealedMessage) -> Result<(), PlatformError> {
        self.platform()?.send(message)
    }

    fn download(&self, artifact: &ArtifactId) -> Result<Vec<u8>, PlatformError> {
        self.platform()?.download(artifact)
    }

    fn worker_state(&self) -> Result<Option<WorkerState>, PlatformError> {
        self.platform()?.worker_state()
    }

    fn save_worker_state(&self, state: &str) -> Result<(), PlatformError> {
        self.platform()?.save_worker_state(state)
    }

    fn check_mapping(&self, mapping: &Value) -> Result<(), PlatformError> {
        self.platform()?.check_mapping(mapping)
    }

    fn create_blueprint(&self, mapping: &Value) -> Result<Option<String>, PlatformError> {
        self.platform()?.create_blueprint(mapping)
    }

    fn install_mapping(&self, mapping: &Value, blueprint: Option<&str>) -> Result<(), PlatformError> {
        self.platform()?.install_mapping(mapping, blueprint)
    }
}
