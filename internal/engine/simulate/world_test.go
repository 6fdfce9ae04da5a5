package simulate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

// mode is the broker that a world resembles.
type mode string

const (
	modeEmbedded mode = "embedded"
	modeLog      mode = "kafka"
	modeQueue    mode = "rabbitmq"
)

// world is one run: processes, their Postgres and their broker. Its seed decides what
// fails and when.
type world struct {
	seed uint64
	mode mode
	// Sizes of the windows, batches and lanes, small so that they fill.
	window         int
	windowBytes    int64
	batch, batches int
	lanes          int
	// length is the maximum number of messages of a key that are published together.
	length int
	// independent is true if an effect does not wait until the one ahead is recorded.
	independent bool
	// shared is true if topics have two consumers.
	shared bool
	faults atomic.Pointer[faults]

	// mu guards the models.
	mu        sync.Mutex
	server    *server
	medium    *medium
	processes int
	live      []*process
	running   sync.WaitGroup
	over      context.Context //nolint:containedctx // it is the lifetime of the world
	end       context.CancelFunc

	// seq and failedSeq are the last numbers of the tables, xid is the last transaction.
	seq, failedSeq, xid int64
	// open are transactions of other programs that have not been committed.
	open map[int64]bool

	random   sync.Mutex
	rng      *rand.Rand
	tries    map[tried]int
	accounts accounts

	out      sync.Mutex
	lines    []string
	problems []string
	began    time.Time
}

type tried struct {
	consumer string
	id       uuid.UUID
}

// faults are probabilities.
type faults struct {
	// dial refuses a connection. request and answer break one before and after a request
	// took effect. unavailable answers that the server is out of memory.
	dial, request, answer, unavailable float64
	// publish loses a message for the broker, confirm its confirmation. refuse and
	// partition refuse its topic and its partition.
	publish, confirm, refuse, partition float64
	mail                                float64
	// slow is the share of answers that take seconds.
	slow float64
}

// newWorld returns a world that begins at a time of its own: a UUIDv7 is later than the one
// before it, whichever world that was in.
func newWorld(seed uint64) *world {
	time.Sleep(time.Duration(seed) * time.Hour) //nolint:gosec,forbidigo // a count; the time is simulated

	w := &world{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), tries: map[tried]int{}, open: map[int64]bool{}, accounts: newAccounts(), began: time.Now(),
	}
	uuid.SetRand(rand.NewChaCha8([32]byte{}))

	w.over, w.end = context.WithCancel(context.Background())
	w.mode = []mode{modeEmbedded, modeLog, modeLog, modeQueue}[w.pick(4)]
	w.window, w.windowBytes = 2+w.pick(15), int64(400+w.pick(2000))
	w.batch, w.batches, w.lanes = 1+w.pick(8), 1+w.pick(3), 1+w.pick(6)
	w.shared, w.independent, w.length = w.pick(2) == 0, w.pick(2) == 0, 1

	if w.mode == modeLog {
		w.length += w.pick(4)
	}

	some := func(p float64) float64 { return p * []float64{0, 1, 3}[w.pick(3)] }
	w.faults.Store(&faults{
		dial: some(0.02), request: some(0.004), answer: some(0.004), unavailable: some(0.003), publish: some(0.02), confirm: some(0.02),
		refuse: some(0.01), partition: some(0.01), mail: some(0.05), slow: some(0.001),
	})
	w.server = newServer(w)
	w.medium = newMedium(w, w.mode == modeQueue, topicOrders, topicResults)

	return w
}

// pick returns a number in [0, n).
func (w *world) pick(n int) int {
	w.random.Lock()
	defer w.random.Unlock()

	return w.rng.IntN(n)
}

func (w *world) chance(p float64) bool {
	w.random.Lock()
	defer w.random.Unlock()

	return w.rng.Float64() < p
}

// sleep waits for d, or until ctx ends.
func (w *world) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()

	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// latency is how long an exchange with a model takes. It is never the same twice, so that
// two things rarely happen at once.
func (w *world) latency() time.Duration {
	switch {
	case w.chance(w.faults.Load().slow):
		return time.Duration(w.pick(int(40 * time.Second)))
	case w.chance(0.02):
		return time.Duration(w.pick(int(300 * time.Millisecond)))
	default:
		return 100*time.Microsecond + time.Duration(w.pick(int(5*time.Millisecond)))
	}
}

// plan returns what a consumer does with a message. It depends on the two and the seed.
func (w *world) plan(consumer string, id uuid.UUID) plan {
	h := fnv.New64a()
	_, _ = h.Write(append([]byte(consumer), id[:]...))
	rng := rand.New(rand.NewPCG(w.seed, h.Sum64()))

	switch rng.IntN(20) {
	case 0, 1:
		return plan{failures: 1 + rng.IntN(4), fault: "failure"}
	case 2:
		return plan{failures: 1 + rng.IntN(12), fault: "failure"}
	case 3:
		return plan{failures: 1 + rng.IntN(3), fault: "panic"}
	case 4:
		return plan{failures: 1 + rng.IntN(2), fault: "later"}
	case 5:
		return plan{failures: 1, fault: "reject"}
	case 6:
		return plan{takes: time.Duration(rng.IntN(int(8 * time.Second)))}
	default:
		return plan{}
	}
}

func (w *world) xmin() int64 {
	low := w.xid + 1
	for xid := range w.open {
		low = min(low, xid)
	}

	return low
}

// tracef records a line of what happened.
func (w *world) tracef(format string, args ...any) {
	w.out.Lock()
	defer w.out.Unlock()

	w.lines = append(w.lines, fmt.Sprintf("%10.6f  ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// problemf records that a promise was broken.
func (w *world) problemf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.tracef("BROKEN: %s", text)

	w.out.Lock()
	defer w.out.Unlock()

	w.problems = append(w.problems, text)
}

// logHandler writes the log of a process to the trace.
func (w *world) logHandler(name string) slog.Handler {
	return slog.NewTextHandler(logWriter{w, name}, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}

		return a
	}})
}

type logWriter struct {
	w    *world
	name string
}

func (l logWriter) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(string(line), "goroutine") // without the stack of a panic
	l.w.tracef("%s: %s", l.name, strings.TrimSpace(text))

	return len(line), nil
}

// run lets the world run: first with faults, then without them until everything is
// settled.
func (w *world) run() {
	w.tracef("seed %d: %s, window %d and %d bytes, batches of %d, %d at once, %d lanes, runs of %d, shared %v, independent %v, %+v",
		w.seed, w.mode, w.window, w.windowBytes, w.batch, w.batches, w.lanes, w.length, w.shared, w.independent, *w.faults.Load())

	for range 1 + w.pick(3) {
		w.live = append(w.live, w.start())
	}

	admin := w.newOperator()

	var producing sync.WaitGroup

	for n := range 2 + w.pick(4) {
		producing.Go(func() { w.produce(fmt.Sprint("k", n)) })
	}

	for until := time.Now().Add(time.Duration(5+w.pick(20)) * time.Second); time.Now().Before(until); {
		w.sleep(w.over, time.Duration(w.pick(int(2*time.Second))))
		w.disturb(admin)
	}

	producing.Wait()
	w.calm(admin)

	for _, p := range w.live {
		p.stop()
	}

	admin.pool.Close()
	w.end()
	w.running.Wait()
	w.sleep(context.Background(), time.Minute) // pgx closes broken connections in the background
	w.verify()
}

// produce sends the messages of a key: to the broker, or through the outbox as a
// transaction that stays open for a while.
func (w *world) produce(name string) {
	throughOutbox := w.mode == modeEmbedded || w.pick(2) == 0

	for n := range 1 + w.pick(9) {
		w.sleep(w.over, time.Duration(w.pick(int(2*time.Second))))

		c := change{ID: name, N: n, Bad: w.pick(20) == 0, Fill: strings.Repeat("x", w.pick(100)*w.pick(2)*w.pick(4))}
		payload, _ := json.Marshal(c)
		id := event.ForeignID(fmt.Sprint(w.seed), name, fmt.Sprint(n))

		if w.pick(25) == 0 {
			payload = append([]byte("?"), payload...)
		}

		if throughOutbox {
			w.appendToOutbox(id, name, payload)

			continue
		}

		w.send(id, name, payload)

		if w.pick(4) == 0 { // twice, and the second time perhaps much later
			w.running.Go(func() {
				w.sleep(w.over, time.Duration(w.pick(int(8*time.Second))))

				if w.over.Err() != nil {
					return
				}

				if w.pick(4) == 0 { // another message with the same id
					payload = []byte(fmt.Sprintf(`{"id":%q,"n":%d,"bad":false,"fill":"twin"}`, name, n))
				}

				w.send(id, name, payload)
			})
		}
	}
}

func (w *world) send(id uuid.UUID, name string, payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.tracef("producer: sends %s", id)
	w.accounts.produced(topicOrders, name, id, payload)
	w.medium.append(topicOrders, record{headers: event.Headers{event.HeaderWatermillID: id.String()}, key: name, payload: payload})
}

// appendToOutbox stores a message as a transaction of another program does: it takes its
// number first and is committed later.
func (w *world) appendToOutbox(id uuid.UUID, name string, payload []byte) {
	w.mu.Lock()
	w.xid++
	w.seq++
	xid, seq := w.xid, w.seq
	w.open[xid] = true
	w.mu.Unlock()

	w.sleep(w.over, w.latency())

	w.server.lock <- struct{}{}
	defer func() { <-w.server.lock }()

	w.mu.Lock()
	defer w.mu.Unlock()

	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	row := outboxRow{seq: seq, shard: int16(h.Sum32() % 64), topic: topicOrders, key: name, id: id, correlation: id, payload: payload, createdAt: time.Now()}

	w.tracef("producer: appends %s as %d", id, seq)

	next := w.server.now.clone()
	next.outbox[seq] = row
	w.committing(w.server.now, next)
	w.server.now = next
	delete(w.open, xid)
}

// disturb does something that happens to services.
func (w *world) disturb(admin *operator) {
	switch w.pick(12) {
	case 0, 1:
		w.replace((*process).kill)
	case 2:
		w.replace((*process).stop)
	case 3, 4:
		w.medium.topics[[]string{topicOrders, topicResults}[w.pick(2)]].nudge()
	case 5:
		w.restartPostgres()
	default:
		admin.act()
	}
}

// replace ends a process and starts another one, perhaps later.
func (w *world) replace(end func(*process)) {
	i := w.pick(len(w.live))
	old := w.live[i]

	w.tracef("%s: ends", old.name)
	end(old)
	w.sleep(w.over, time.Duration(w.pick(int(time.Second))))
	w.live[i] = w.start()
}

// restartPostgres breaks all connections.
func (w *world) restartPostgres() {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.tracef("postgres: restarts")

	for _, c := range w.server.sessions {
		_ = c.conn.Close()
	}
}

// operator acts on failed messages and consumers.
type operator struct {
	*process
}

var by = activity.Actor{Who: "operator", Why: "test"}

func (w *world) newOperator() *operator {
	p := &process{w: w, name: "operator"}
	p.pool = w.connect(p)
	p.failures = failed.NewStore(failed.DefaultConfig(), p.pool)

	logger, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	p.router = w.router(p, breaker.NewSet(logger, registry), logger, registry)

	return &operator{p}
}

// act does one thing at random; it may fail.
func (o *operator) act() {
	ctx, cancel := context.WithTimeout(o.w.over, 10*time.Second)
	defer cancel()

	// The operator leaves messages whose id has two payloads alone; settle discards them.
	stopped, waiting := o.w.failedIDs("stopped", false), o.w.failedIDs("waiting", false)

	switch n := o.w.pick(8); {
	case n < 2:
		_, err := o.failures.Requeue(ctx, failed.Filter{IDs: stopped}, by, failed.Pace{Overtaken: o.w.pick(2) == 0}, o.router.Check)
		o.w.tracef("operator: requeues all: %v", err)
	case n == 2 && len(stopped) > 0:
		id := stopped[o.w.pick(len(stopped))]
		_, err := o.failures.Requeue(ctx, failed.Filter{IDs: []int64{id}}, by, failed.Pace{}, o.router.Check)
		o.w.tracef("operator: requeues %d: %v", id, err)
	case n == 3 && len(stopped) > 0:
		o.edit(ctx, stopped[o.w.pick(len(stopped))])
	case n == 4 && len(waiting) > 0:
		id := waiting[o.w.pick(len(waiting))]
		_, err := o.failures.Skip(ctx, id, by)
		o.w.tracef("operator: skips %d: %v", id, err)
	case n == 5 && len(stopped) > 0 && o.w.pick(3) == 0:
		id := stopped[o.w.pick(len(stopped))]
		_, err := o.failures.Discard(ctx, failed.Filter{IDs: []int64{id}}, by, failed.Pace{})
		o.w.tracef("operator: discards %d: %v", id, err)
	default:
		name := o.w.consumersOf([]string{topicOrders, topicResults}[o.w.pick(2)])[0]
		if o.w.pick(2) == 0 {
			_, err := o.router.Pause(ctx, name, 0, by)
			o.w.tracef("operator: pauses %s: %v", name, err)
		} else {
			_, err := o.router.Resume(ctx, name, by)
			o.w.tracef("operator: resumes %s: %v", name, err)
		}
	}
}

// edit corrects a bad message.
func (o *operator) edit(ctx context.Context, id int64) {
	o.w.mu.Lock()
	r := o.w.server.now.failed[id]
	o.w.mu.Unlock()

	var c change
	if json.Unmarshal(r.payload, &c) != nil || r.topic != topicOrders || !c.Bad {
		return
	}

	c.Bad = false
	payload, _ := json.Marshal(c)
	_, err := o.failures.Edit(ctx, id, failed.Edit{Payload: payload}, by, o.router.Check)
	o.w.tracef("operator: edits %d: %v", id, err)
}

// failedIDs returns the failed messages in a state: those whose id has two payloads, or
// the others.
func (w *world) failedIDs(state string, twins bool) (ids []int64) {
	w.mu.Lock()
	defer w.mu.Unlock()

	for _, id := range slices.Sorted(maps.Keys(w.server.now.failed)) {
		if r := w.server.now.failed[id]; r.state == state && w.accounts.twins(r.messageID) == twins {
			ids = append(ids, id)
		}
	}

	return ids
}

// calm ends all faults and lets an operator settle what is left.
func (w *world) calm(admin *operator) {
	w.faults.Store(&faults{})
	w.tracef("calm")

	for range 600 {
		if w.settled() {
			return
		}

		w.sleep(w.over, 2*time.Second)
		admin.settle()
	}

	w.problemf("the world does not settle: %s", w.unsettled())
}

// settle resumes consumers, edits bad messages, discards what nobody can read, and
// requeues the rest.
func (o *operator) settle() {
	ctx, cancel := context.WithTimeout(o.w.over, time.Minute)
	defer cancel()

	for _, name := range slices.Concat(o.w.consumersOf(topicOrders), o.w.consumersOf(topicResults)) {
		_, _ = o.router.Resume(ctx, name, by)
	}

	if twins := o.w.failedIDs("stopped", true); len(twins) > 0 {
		_, _ = o.failures.Discard(ctx, failed.Filter{IDs: twins}, by, failed.Pace{})
	}

	for _, id := range o.w.failedIDs("stopped", false) {
		o.w.mu.Lock()
		r := o.w.server.now.failed[id]
		o.w.mu.Unlock()

		if malformed(r.payload) {
			_, _ = o.failures.Discard(ctx, failed.Filter{IDs: []int64{id}}, by, failed.Pace{})
		} else if r.edited == nil {
			o.edit(ctx, id)
		}
	}

	if left := o.w.failedIDs("stopped", false); len(left) > 0 {
		_, err := o.failures.Requeue(ctx, failed.Filter{IDs: left}, by, failed.Pace{Overtaken: true}, o.router.Check)
		o.w.tracef("operator: requeues what is left: %v", err)
	}
}

// settled reports whether nothing is left to do.
func (w *world) settled() bool { return w.unsettled() == "" }

func (w *world) unsettled() string {
	w.mu.Lock()
	defer w.mu.Unlock()

	now := w.server.now

	var left []string

	for _, id := range slices.Sorted(maps.Keys(now.failed)) {
		if r := now.failed[id]; r.state != "resolved" {
			left = append(left, fmt.Sprintf("%s %d (%s) is %s: %s %s", r.consumer, id, r.messageID, r.state, r.reason, firstLine(r.err)))
		}
	}

	if n := len(now.outbox); n > 0 {
		left = append(left, fmt.Sprintf("%d messages are in the outbox", n))
	}

	if w.mode != modeEmbedded && !w.medium.drained() {
		left = append(left, "the broker has messages that are not acknowledged")
	}

	if n := len(now.keys); n > 0 {
		left = append(left, fmt.Sprintf("%d failed keys are left", n))
	}

	return strings.Join(left, "; ")
}

func (w *world) published(name string, msg *message.Message) {
	w.tracef("broker: gets %s for %s", msg.UUID, name)
	w.accounts.published(w, name, msg.Metadata[event.HeaderKey], uuid.MustParse(msg.UUID))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")

	return line
}
