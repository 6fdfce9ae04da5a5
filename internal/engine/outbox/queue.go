package outbox

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/millracehq/millrace/internal/engine/event"
)

// row is a message read from the table.
type row struct {
	Seq         int64
	Shard       int16
	Topic       string
	Key         string
	ID          uuid.UUID
	Correlation uuid.UUID
	Causation   *uuid.UUID
	Headers     event.Headers
	Payload     []byte
	Trace       *string
	CreatedAt   time.Time
}

// traceAttrs returns the trace of the row for the log.
func (r row) traceAttrs() []slog.Attr {
	if r.Trace == nil {
		return nil
	}

	return event.TraceAttrs(*r.Trace)
}

// rowColumns are the fields of row, in order.
const rowColumns = `seq, shard, topic, key, message_id, correlation_id, causation_id, headers, payload, traceparent, created_at`

// maxBytes bounds the payloads that a relay has read but not yet published. That is room
// for about 30 messages of the maximum size, 1 MiB, which is enough to keep a broker
// busy. With messages of the usual size, Config.MaxInFlight is reached first.
const maxBytes = 32 << 20

// maxRunBytes bounds the payloads of a run, except that a run has at least one row.
const maxRunBytes = 256 << 10

// queue distributes rows to concurrent lanes, in runs of adjacent rows of a key. The runs
// of a key are published sequentially, in order; different keys are published
// concurrently.
type queue struct {
	// run is the maximum number of rows in a run.
	run int

	mu       sync.Mutex
	nonEmpty *sync.Cond
	// keys holds the unpublished rows of each key. A lane may be publishing the
	// first ones.
	keys map[string][]row
	// ready lists the keys whose first row is not in a lane.
	ready []string
	// taken has the number of rows in lanes, if a lane has more than one row of a key.
	taken map[string]int
	// alone has the number of rows that are to be published alone, by key, because a run of
	// them could not be published.
	alone map[string]int
	// inFlight contains all rows that have been read but not deleted.
	inFlight map[int64]struct{}
	// bytes is the size of the payloads in keys.
	bytes int
	// confirmed lists rows in flight that the broker has confirmed but that are still in
	// the table.
	confirmed []int64
	// failures contains the keys whose first row could not be published. For such a
	// key, the queue holds only the first row, and only while that row is being retried.
	failures map[string]failure
	// returns counts how often rows were returned to the table. A read that was running
	// at the time misses them; see push.
	returns int
	// busy counts the runs being published.
	busy   int
	closed bool
}

// failure is the state of a key whose first row could not be published.
type failure struct {
	shard int16
	topic string
	// count is the number of consecutive failures.
	count int
	// due is true if the back-off is over and the row has not been read again.
	due bool
}

func newQueue(run int) *queue {
	q := &queue{
		run: run, keys: make(map[string][]row), taken: make(map[string]int), alone: make(map[string]int),
		inFlight: make(map[int64]struct{}), failures: make(map[string]failure),
	}
	q.nonEmpty = sync.NewCond(&q.mu)

	return q
}

// backingOff returns the number of keys that back off because of messages for a topic.
func (q *queue) backingOff(topic string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for _, f := range q.failures {
		if f.topic == topic && !f.due {
			n++
		}
	}

	return n
}

// push adds rows, ordered by sequence number, from a read that started when q.returns
// had the given value. If it has grown since, push leaves the rows in the table,
// because the read may have missed earlier rows of their keys. kept is false if any
// row was left in the table.
func (q *queue) push(rows []row, returns int) (kept bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if returns != q.returns {
		return false
	}

	kept = true

	for _, r := range rows {
		if f, failed := q.failures[r.Key]; failed {
			if !f.due {
				kept = false

				continue
			}

			f.due = false
			q.failures[r.Key] = f
		}

		q.inFlight[r.Seq] = struct{}{}

		if len(q.keys[r.Key]) == 0 {
			q.makeReady(r.Key)
		}

		q.keys[r.Key] = append(q.keys[r.Key], r)
		q.bytes += len(r.Payload)
	}

	return kept
}

// makeReady lets a lane take the first rows of a key. It wakes one lane: waking all of
// them, of which there are hundreds, would cost more than publishing a row.
func (q *queue) makeReady(key string) {
	q.ready = append(q.ready, key)
	q.nonEmpty.Signal()
}

// next waits for a run to publish. ok is false once the queue is closed.
func (q *queue) next() (rows []row, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for len(q.ready) == 0 && !q.closed {
		q.nonEmpty.Wait()
	}

	if q.closed {
		return nil, false
	}

	key := q.ready[0]
	q.ready = q.ready[1:]
	q.busy++

	n := q.runOf(key)
	if n > 1 {
		q.taken[key] = n
	}

	return slices.Clone(q.keys[key][:n]), true
}

// runOf returns the number of rows in the next run of a key.
func (q *queue) runOf(key string) int {
	if q.alone[key] > 0 {
		return 1
	}

	rows := q.keys[key]
	n, size := 1, len(rows[0].Payload)

	for n < min(len(rows), q.run) && size+len(rows[n].Payload) <= maxRunBytes {
		size += len(rows[n].Payload)
		n++
	}

	return n
}

// published marks a run as confirmed by the broker and frees its key. due is true if the
// relay should start a round immediately: there are many rows to delete, there is space for
// large rows again, the key had backed off, or a drain waits for the last run. Otherwise
// the rows wait for a later round: deleting them one by one would cost more than publishing
// them.
func (q *queue) published(rows []row, batch int) (due bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	_, backedOff := q.failures[rows[0].Key]
	delete(q.failures, rows[0].Key)

	q.busy--

	for _, r := range rows {
		q.confirmed = append(q.confirmed, r.Seq)
	}

	full := q.bytes >= maxBytes/2
	q.advance(rows)
	space := full && q.bytes < maxBytes/2

	return backedOff || space || len(q.confirmed) >= batch || q.closed && q.busy == 0
}

// hasConfirmed reports whether there are rows to delete.
func (q *queue) hasConfirmed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()

	return len(q.confirmed) > 0
}

// refused frees the key of r, a row that the broker refuses. The row stays in flight
// until the table marks it as refused.
func (q *queue) refused(r row) {
	q.mu.Lock()
	defer q.mu.Unlock()

	delete(q.failures, r.Key)
	q.busy--
	q.advance([]row{r})
}

// advance makes the rows behind a run ready, unless the key was dropped in the meantime.
func (q *queue) advance(done []row) {
	key := done[0].Key
	delete(q.taken, key)

	rest := q.keys[key]
	if len(rest) == 0 || rest[0].Seq != done[0].Seq {
		return
	}

	for i, r := range done {
		q.bytes -= len(r.Payload)
		rest[i] = row{} // release the payload
	}

	if left := q.alone[key] - 1; left > 0 {
		q.alone[key] = left
	} else {
		delete(q.alone, key)
	}

	if rest = rest[len(done):]; len(rest) == 0 {
		delete(q.keys, key)
	} else {
		q.keys[key] = rest
		q.makeReady(key)
	}
}

// split makes a run ready again, each of its rows as a run of its own, because one of them
// cannot be published.
func (q *queue) split(rows []row) {
	q.mu.Lock()
	defer q.mu.Unlock()

	key := rows[0].Key
	delete(q.taken, key)
	q.busy--

	if left := q.keys[key]; len(left) > 0 && left[0].Seq == rows[0].Seq {
		q.alone[key] = len(rows)
		q.makeReady(key)
	}
}

// failed makes the key of r back off and returns the wait. stuck is true if the wait
// has just reached its maximum. Call release after the wait. The rows of the key are
// returned to the table, so that keys that back off use no memory.
func (q *queue) failed(r row) (wait time.Duration, stuck bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.busy--

	if rows := q.keys[r.Key]; len(rows) > 0 && rows[0].Seq == r.Seq {
		q.remove(rows, true)
	}

	q.returns++

	count := q.failures[r.Key].count + 1
	q.failures[r.Key] = failure{shard: r.Shard, topic: r.Topic, count: count}

	return min(maxWait, minWait<<min(count-1, 10)), count == stuckAfter
}

// returned returns r and the later rows of its key to the table because its topic is
// suspended.
func (q *queue) returned(r row) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.busy--
	delete(q.failures, r.Key)

	if rows := q.keys[r.Key]; len(rows) > 0 && rows[0].Seq == r.Seq {
		q.remove(rows, true)
	}

	q.returns++
}

// dropTopics returns the keys with rows of these topics to the table, except keys
// that a lane is publishing.
func (q *queue) dropTopics(topics []string) {
	q.mu.Lock()
	defer q.mu.Unlock()

	kept := q.ready[:0]

	for _, key := range q.ready {
		rows := q.keys[key]

		if slices.ContainsFunc(rows, func(r row) bool { return slices.Contains(topics, r.Topic) }) {
			q.remove(rows, true)
			delete(q.failures, key)
		} else {
			kept = append(kept, key)
		}
	}

	q.ready = kept
	q.returns++
}

// release lets the next read take the first row of a key that has backed off.
func (q *queue) release(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if f, failed := q.failures[key]; failed {
		f.due = true
		q.failures[key] = f
	}
}

// takeConfirmed returns the rows to delete.
func (q *queue) takeConfirmed() []int64 {
	q.mu.Lock()
	defer q.mu.Unlock()

	confirmed := q.confirmed
	q.confirmed = nil

	return confirmed
}

// want describes the next read.
type want struct {
	// limit is the number of rows to read; none if not positive. The read ends early
	// with the row that fills bytes.
	limit, bytes int
	// inFlight are the rows and backingOff the keys to exclude.
	inFlight   pgtype.Multirange[pgtype.Range[int64]]
	backingOff []string
	// returns is passed to push with the rows.
	returns int
}

// cut reports whether a read ended at one of its limits, so that there may be more rows.
func (w want) cut(rows []row) bool {
	left := w.bytes
	for _, r := range rows {
		left -= len(r.Payload)
	}

	return len(rows) >= w.limit || left <= 0
}

// wants returns what to read next, at most batch rows. It returns nothing while batch
// keys are ready, because each read scans all rows in flight, or while there is no space
// for payloads. A key that backs off counts as a row in flight.
func (q *queue) wants(batch, maxInFlight int) want {
	q.mu.Lock()
	defer q.mu.Unlock()

	if len(q.ready) >= batch || q.bytes >= maxBytes {
		return want{}
	}

	next := q.untaken()
	next.limit = min(batch, maxInFlight-len(q.inFlight)-len(next.backingOff))
	next.bytes = maxBytes - q.bytes

	return next
}

// probe returns what to exclude when reading a single row, for which there is always
// space.
func (q *queue) probe() want {
	q.mu.Lock()
	defer q.mu.Unlock()

	next := q.untaken()
	next.limit = 1

	return next
}

// untaken returns a want that excludes the rows in flight and the keys that back off.
func (q *queue) untaken() want {
	next := want{
		inFlight:   ranges(slices.Sorted(maps.Keys(q.inFlight))),
		backingOff: []string{}, // not nil: a comparison with NULL is never true
		returns:    q.returns,
	}

	for key, f := range q.failures {
		if !f.due {
			next.backingOff = append(next.backingOff, key)
		}
	}

	return next
}

// has reports whether a row has been read and has not been returned or deleted since.
func (q *queue) has(seq int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()

	_, has := q.inFlight[seq]

	return has
}

// hurry moves the key of a row to the front if it is ready.
func (q *queue) hurry(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if i := slices.Index(q.ready, key); i > 0 {
		q.ready = slices.Insert(slices.Delete(q.ready, i, i+1), 0, key)
	}
}

// ranges merges sorted numbers into ranges of adjacent numbers.
func ranges(sorted []int64) pgtype.Multirange[pgtype.Range[int64]] {
	list := pgtype.Multirange[pgtype.Range[int64]]{} // not nil, which is NULL

	for _, n := range sorted {
		if last := len(list) - 1; last >= 0 && list[last].Upper == n {
			list[last].Upper++
		} else {
			list = append(list, pgtype.Range[int64]{Lower: n, Upper: n + 1, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true})
		}
	}

	return list
}

// deleted removes rows that have left the table.
func (q *queue) deleted(seqs []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for _, seq := range seqs {
		delete(q.inFlight, seq)
	}
}

// restore undoes takeConfirmed after a failed deletion.
func (q *queue) restore(confirmed []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.confirmed = append(q.confirmed, confirmed...)
}

// drop removes the rows whose shard keep rejects, because another replica may now publish
// them. Rows that a lane is publishing stay.
func (q *queue) drop(keep func(shard int16) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	ready := make(map[string]bool, len(q.ready))
	for _, key := range q.ready {
		ready[key] = true
	}

	q.ready = q.ready[:0]

	for key, rows := range q.keys {
		switch {
		case keep(rows[0].Shard):
			if ready[key] {
				q.ready = append(q.ready, key)
			}
		default:
			q.remove(rows, ready[key])
		}
	}

	maps.DeleteFunc(q.failures, func(_ string, f failure) bool { return !keep(f.shard) })
}

// remove removes the rows of a key. Those that a lane is publishing stay in flight, so
// that their confirmation finds them.
func (q *queue) remove(rows []row, all bool) {
	key := rows[0].Key
	delete(q.alone, key)

	if all {
		delete(q.keys, key)
	} else {
		n := max(1, q.taken[key])
		q.keys[key] = rows[:n]
		rows = rows[n:]
	}

	for _, r := range rows {
		delete(q.inFlight, r.Seq)
		q.bytes -= len(r.Payload)
	}
}

// idle reports whether no lane is publishing.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()

	return q.busy == 0
}

// close ends the lanes once they have finished their current rows.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.closed = true
	q.nonEmpty.Broadcast()
}
