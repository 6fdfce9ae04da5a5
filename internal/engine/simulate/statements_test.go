package simulate_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// entryColumns are the types of failed.Entry.
const entryColumns = `int8 text text text uuid text text json bytea text text int4 int4 timestamptz timestamptz timestamptz
	text text text text int4 bytea text timestamptz uuid text`

func entry(r failedRow) []any {
	return []any{
		r.id, r.state, r.consumer, r.topic, r.messageID, r.origin, r.key, []byte(r.headers), r.payload, r.reason, r.err, r.deliveries, r.attempts,
		r.firstAt, r.lastAt, r.triedAt, r.firstRelease, r.lastRelease, r.group, r.cause, r.revision, r.edited, r.resolved, r.resolvedAt, r.appliedAs,
		deref(r.failedKey),
	}
}

func deref[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}

	return value
}

const rowTypes = `int8 int2 text text uuid uuid uuid json bytea text timestamptz`

func (r outboxRow) values() []any {
	var headers []byte
	if r.headers != nil {
		headers = []byte(*r.headers)
	}

	return []any{r.seq, r.shard, r.topic, r.key, r.id, r.correlation, r.causation, headers, r.payload, r.traceparent, r.createdAt}
}

// statements are those of the engine. The first whose text a statement contains is it.
var statements []statement

func init() { //nolint:gochecknoinits // the statements refer to functions that refer to them
	statements = slices.Concat(sessionStatements, inboxStatements, outboxStatements, keyStatements, failedStatements, operatorStatements)
}

func nothing(*query) int { return 0 }

var sessionStatements = []statement{
	{"pg_is_in_recovery()", "", "text text text text", func(q *query) int {
		q.add(strconv.Itoa(int(q.pid)), "UTF8", "off", "f")

		return 1
	}},
	{"set_config(name", "", "text", nothing},
	{"LISTEN ", "", "", func(q *query) int { q.listening = true; return 0 }},
	{"pg_notify($1, $2)", "text text", "text", func(q *query) int { q.notify(arg[string](q, 2)); return 0 }},
	{"pg_notify($1, '')", "text", "text", func(q *query) int { q.notify(""); return 0 }},
	{"pg_advisory_xact_lock", "int4 text", "text", nothing}, // transactions run one after the other
	{"pg_advisory_lock_shared", "int4 int4", "text", func(q *query) int {
		q.mark(int64(arg[int32](q, 1)), int64(arg[int32](q, 2)))

		return 0
	}},
	{"pg_advisory_unlock_all", "", "text", func(q *query) int {
		for _, holders := range q.marks {
			delete(holders, q.session)
		}

		return 0
	}},
	{"FROM pg_locks", "int4 int4", "int8", func(q *query) int {
		q.add(int64(len(q.marks[[2]int64{int64(arg[int32](q, 1)), int64(arg[int32](q, 2))}])))

		return 1
	}},
	{"pg_try_advisory_lock", "int4 int4", "bool", func(q *query) int {
		k := [2]int64{int64(arg[int32](q, 1)), int64(arg[int32](q, 2))}
		free := len(q.marks[k]) == 0 || q.marks[k][q.session]

		if free {
			q.mark(k[0], k[1])
		}

		q.add(free)

		return 1
	}},
	{"pg_advisory_unlock($1, $2 + shard)", "int4 int4 int4[]", "text", func(q *query) int {
		for _, shard := range arg[[]int32](q, 3) {
			delete(q.marks[[2]int64{int64(arg[int32](q, 1)), int64(arg[int32](q, 2) + shard)}], q.session)
		}

		return 0
	}},
}

func (c *session) mark(class, object int64) {
	k := [2]int64{class, object}
	if c.marks[k] == nil {
		c.marks[k] = map[*session]bool{}
	}

	c.marks[k][c] = true
}

// notify tells all sessions that listen, once the transaction is committed. Every other
// notification gets lost: they are hints.
func (c *session) notify(payload string) {
	c.after = append(c.after, func() {
		for _, other := range c.sessions {
			if other.listening && c.w.chance(0.5) {
				select {
				case other.notices <- payload:
				default:
				}
			}
		}
	})
}

var inboxStatements = []statement{
	{"INSERT INTO inbox", "text uuid[] date[] int8[] uuid[] uuid[]", "uuid", func(q *query) int {
		claimed, prints := arg[[]uuid.UUID](q, 2), arg[[]int64](q, 4)
		otherwise := strings.Contains(q.sql, "ON CONFLICT DO NOTHING")
		added := map[claim]int64{}

		for i, id := range claimed {
			c := claim{arg[string](q, 1), id}
			_, was := q.t.inbox[c]
			_, twice := added[c]

			switch {
			case !was && !twice:
				added[c] = prints[i]

				if otherwise {
					q.add(id)
				}
			case !otherwise:
				return q.fail("23505", "duplicate key value violates unique constraint")
			}
		}

		maps.Copy(q.t.inbox, added)

		return len(added)
	}},
	{"DELETE FROM inbox", "text uuid date", "", func(q *query) int {
		delete(q.t.inbox, claim{arg[string](q, 1), arg[uuid.UUID](q, 2)})

		return 1
	}},
	{"SELECT e.id, i.fingerprint", "text uuid[] date[]", "uuid int8", func(q *query) int {
		for _, id := range arg[[]uuid.UUID](q, 2) {
			if sum, seen := q.t.inbox[claim{arg[string](q, 1), id}]; seen {
				q.add(id, sum)
			}
		}

		return 0
	}},
	{"INSERT INTO effects", "text text int8 uuid", "", func(q *query) int {
		q.t.effects = append(q.t.effects, effect{arg[string](q, 1), arg[string](q, 2), int(arg[int64](q, 3)), arg[uuid.UUID](q, 4)})

		return 1
	}},
}

var outboxStatements = []statement{
	{"INSERT INTO outbox", "int2[] text[] text[] uuid[] uuid[] uuid[] text[] bytea[] float8[] text[]", "", func(q *query) int {
		topics := arg[[]string](q, 2)

		for i := range topics {
			q.w.seq++
			row := outboxRow{
				seq: q.w.seq, shard: arg[[]int16](q, 1)[i], topic: topics[i], key: arg[[]string](q, 3)[i],
				id: arg[[]uuid.UUID](q, 4)[i], correlation: arg[[]uuid.UUID](q, 5)[i], causation: arg[[]*uuid.UUID](q, 6)[i],
				headers: arg[[]*string](q, 7)[i], payload: arg[[][]byte](q, 8)[i], traceparent: arg[[]*string](q, 10)[i], createdAt: time.Now(),
			}

			if delay := arg[[]float64](q, 9)[i]; delay > 0 {
				row.availableAt = after(delay)
			}

			q.t.outbox[row.seq] = row
		}

		return len(topics)
	}},
	{"pg_snapshot_xmin", "", "int8", func(q *query) int { q.add(q.w.xmin()); return 1 }},
	{"bytes - octet_length(payload) < $7", "int2[] ranges text[] int8 text[] int8 int8", rowTypes, func(q *query) int {
		bytes := int64(0)

		for _, r := range q.due(arg[int64](q, 6)) {
			if slices.Contains(arg[[]string](q, 5), r.topic) || int64(len(q.rows)) == arg[int64](q, 4) || bytes >= arg[int64](q, 7) {
				continue
			}

			bytes += int64(len(r.payload))
			q.add(r.values()...)
		}

		return 0
	}},
	{"AND topic = $4", "int2[] ranges text[] text", rowTypes, func(q *query) int {
		for _, r := range q.due(0) {
			if r.topic == arg[string](q, 4) && len(q.rows) == 0 {
				q.add(r.values()...)
			}
		}

		return 0
	}},
	{"DELETE FROM outbox WHERE seq = ANY($1) AND available_at IS NULL", "int8[]", "", func(q *query) (n int) {
		for _, seq := range arg[[]int64](q, 1) {
			if r, is := q.t.outbox[seq]; is && r.availableAt == nil {
				delete(q.t.outbox, seq)
				n++
			}
		}

		return n
	}},
	{"UPDATE outbox SET available_at = NULL\n", "int2[]", "", func(q *query) (n int) {
		for seq, r := range q.t.outbox {
			if r.availableAt != nil && r.refused == "" && !r.availableAt.After(time.Now()) && slices.Contains(arg[[]int16](q, 1), r.shard) {
				r.availableAt = nil
				q.t.outbox[seq] = r
				n++
			}
		}

		return n
	}},
	{"SET available_at = 'infinity'", "int8[] text[]", "", func(q *query) int {
		whys := arg[[]string](q, 2)

		for i, seq := range arg[[]int64](q, 1) {
			if r, is := q.t.outbox[seq]; is && r.availableAt == nil {
				r.availableAt, r.refused = &time.Time{}, whys[i]
				q.t.outbox[seq] = r
			}
		}

		return len(whys)
	}},
	{"0)::float8,\n", "", "float8 float8", func(q *query) int { q.add(0.0, 0.0); return 1 }},
	{"SELECT last_value FROM outbox_seq_seq", "", "int8", func(q *query) int { q.add(q.w.seq); return 1 }},
	{"SELECT pg_current_xact_id()", "", "int8", func(q *query) int { q.w.xid++; q.add(q.w.xid); return 1 }},
	{"SELECT DISTINCT key FROM outbox", "text[] text[]", "text", func(q *query) int {
		for _, r := range q.t.outbox {
			if slices.Contains(arg[[]string](q, 1), r.topic) && slices.Contains(arg[[]string](q, 2), r.key) {
				q.add(r.key)
			}
		}

		return 0
	}},
}

// due returns the rows that a relay may read, in order: $1 are shards, $2 rows and $3 keys
// to leave out.
func (q *query) due(above int64) (rows []outboxRow) {
	shards, without := arg[[]int16](q, 1), arg[pgtype.Multirange[pgtype.Range[int64]]](q, 2)

	for _, seq := range slices.Sorted(maps.Keys(q.t.outbox)) {
		r := q.t.outbox[seq]
		taken := slices.ContainsFunc(without, func(in pgtype.Range[int64]) bool { return seq >= in.Lower && seq < in.Upper })

		if r.availableAt == nil && seq > above && !taken && slices.Contains(shards, r.shard) && !slices.Contains(arg[[]string](q, 3), r.key) {
			rows = append(rows, r)
		}
	}

	return rows
}

func after(seconds float64) *time.Time {
	at := time.Now().Add(time.Duration(seconds * float64(time.Second)))

	return &at
}

func now() *time.Time { return after(0) }

// keysOf pairs columns of consumers and keys.
func keysOf(q *query) (list []key) {
	names := arg[[]string](q, 2)
	for i, consumer := range arg[[]string](q, 1) {
		list = append(list, key{consumer, names[i]})
	}

	slices.SortFunc(list, key.compare)

	return slices.Compact(list)
}

var keyStatements = []statement{
	{"SELECT key, due_at IS NOT NULL FROM failed_keys", "text text[]", "text bool", func(q *query) int {
		for _, name := range arg[[]string](q, 2) {
			if row, is := q.t.keys[key{arg[string](q, 1), name}]; is {
				q.add(name, row.due != nil)
			}
		}

		return 0
	}},
	{"WITH awaiting AS", "text[] text", "", func(q *query) (n int) {
		for k, row := range q.t.keys { // in any order
			if slices.Contains(arg[[]string](q, 1), k.key) && row.due != nil && slices.Contains(row.awaits, arg[string](q, 2)) {
				row.due = now()
				q.t.keys[k] = row
				n++
			}
		}

		return n
	}},
	{"SELECT DISTINCT unnest(awaits)", "int8", "text", func(q *query) int {
		found := map[string]bool{}

		for _, row := range q.t.keys {
			for _, topic := range row.awaits {
				found[topic] = row.due != nil
			}
		}

		for _, topic := range slices.Sorted(maps.Keys(found)) {
			q.add(topic)
		}

		return 0
	}},
	{"INSERT INTO failed_keys AS k (consumer, key, due_at, awaits)", "text text float8 text[]", "", func(q *query) int {
		k := key{arg[string](q, 1), arg[string](q, 2)}
		row := q.t.keys[k]

		if seconds := arg[*float64](q, 3); row.due == nil && seconds != nil {
			row.due, row.awaits = after(*seconds), arg[[]string](q, 4)
		}

		q.t.keys[k] = row

		return 1
	}},
	{"UPDATE failed_keys SET awaits = $5::text[]", "text text int8 float8 text[]", "", func(q *query) int {
		k := key{arg[string](q, 1), arg[string](q, 2)}
		row, is := q.t.keys[k]

		if waiting := q.t.failedIn(k, "waiting"); !is || len(waiting) == 0 || waiting[0].id != arg[int64](q, 3) {
			return 0
		}

		row.awaits = arg[[]string](q, 5)
		if row.due == nil || row.leasedAt == nil || !row.due.After(*row.leasedAt) {
			row.due = after(arg[float64](q, 4))
		}

		q.t.keys[k] = row

		return 1
	}},
	{"SELECT k.consumer, k.key FROM failed_keys k JOIN", "int8", "text text", func(q *query) int {
		if r := q.t.failed[arg[int64](q, 1)]; r.state == "waiting" {
			q.add(r.consumer, *r.failedKey)
		}

		return 0
	}},
	{"SELECT FROM failed_keys k WHERE (consumer, key) IN (SELECT", "int8[]", "", nothing},
	{"SELECT FROM failed_keys WHERE", "text[] text[]", "", nothing},
	{"DELETE FROM failed_keys k", "text[] text[]", "", func(q *query) int {
		for _, k := range keysOf(q) {
			if len(q.t.failedIn(k, "waiting", "stopped")) == 0 {
				delete(q.t.keys, k)
			}
		}

		return 0
	}},
	{"UPDATE failed_keys k SET due_at = NULL, awaits = '{}'", "text[] text[]", "", func(q *query) int {
		for _, k := range keysOf(q) {
			if row, is := q.t.keys[k]; is && len(q.t.failedIn(k, "waiting")) == 0 {
				row.due, row.awaits = nil, nil
				q.t.keys[k] = row
			}
		}

		return 0
	}},
	{"UPDATE failed_keys k SET leased_at = clock_timestamp(), leased_until", "float8 text[] int8[]", "text text timestamptz", lease},
	{"WITH own AS", "text[] text[] timestamptz[] float8", "", func(q *query) int {
		since := arg[[]time.Time](q, 3)
		names := arg[[]string](q, 2)

		for i, consumer := range arg[[]string](q, 1) {
			k := key{consumer, names[i]}
			if row := q.t.keys[k]; row.leasedAt != nil && row.leasedAt.Equal(since[i]) {
				row.leasedUntil = after(arg[float64](q, 4))
				q.t.keys[k] = row
			}
		}

		return 0
	}},
	{"UPDATE failed_keys SET leased_at = NULL", "text text timestamptz float8", "", func(q *query) int {
		k := key{arg[string](q, 1), arg[string](q, 2)}
		row := q.t.keys[k]

		if row.leasedAt == nil || !row.leasedAt.Equal(arg[time.Time](q, 3)) {
			return 0
		}

		if wait := arg[float64](q, 4); wait != 0 && row.due != nil && !row.due.After(*row.leasedAt) {
			row.due = after(wait)
		}

		row.leasedAt, row.leasedUntil = nil, nil
		q.t.keys[k] = row

		return 1
	}},
	{"UPDATE failed_keys SET due_at = clock_timestamp() WHERE consumer = $1", "text text", "", func(q *query) int {
		k := key{arg[string](q, 1), arg[string](q, 2)}
		if row := q.t.keys[k]; row.due != nil {
			row.due = now()
			q.t.keys[k] = row
		}

		return 1
	}},
}

// lease leases keys that are due. Postgres keeps microseconds.
func lease(q *query) int {
	rooms := arg[[]int64](q, 3)
	at := time.Now().Truncate(time.Microsecond)

	for i, consumer := range arg[[]string](q, 2) {
		var due []key

		for k, row := range q.t.keys {
			if k.consumer == consumer && row.due != nil && !row.due.After(at) && (row.leasedUntil == nil || !row.leasedUntil.After(at)) {
				due = append(due, k)
			}
		}

		slices.SortFunc(due, func(a, b key) int { return cmp.Or(q.t.keys[a].due.Compare(*q.t.keys[b].due), a.compare(b)) })

		for _, k := range due[:min(int64(len(due)), max(rooms[i], 0))] {
			row := q.t.keys[k]
			row.leasedAt, row.leasedUntil = &at, after(arg[float64](q, 1))
			q.t.keys[k] = row
			q.add(k.consumer, k.key, at)
		}
	}

	return 0
}

var failedStatements = []statement{
	{"WITH held AS", "text text text uuid int8 text text bytea text text text text int4 text text text", "", insertFailed},
	{"SELECT u.key FROM unnest($3", "text[] text[] text[] text[]", "text", func(q *query) int {
		stored := arg[[]string](q, 4)

		for i, name := range arg[[]string](q, 3) {
			for _, r := range q.t.failed {
				waits := r.state == "waiting" && slices.Contains(arg[[]string](q, 1), r.consumer)
				if slices.Contains(arg[[]string](q, 2), r.consumer) && deref(r.failedKey) == stored[i] && (waits || r.state == "stopped") {
					q.add(name)

					break
				}
			}
		}

		return 0
	}},
	{"SELECT d.n - 1, true", "text uuid[] int8[] text[] int8[] int4[] bool[]", "int8 bool", decided},
	{"SET attempts = $2, reason = $3", "int8 int4 text text text text text int4", "", func(q *query) int {
		r, is := q.t.failed[arg[int64](q, 1)]
		if !is || r.state != "waiting" || r.revision != int(arg[int32](q, 8)) {
			return 0
		}

		r.attempts, r.reason, r.err, r.cause, r.group = int(arg[int32](q, 2)), arg[string](q, 3), arg[string](q, 4), arg[string](q, 5), arg[string](q, 6)
		r.triedAt, r.lastAt = now(), time.Now()
		r.revision++

		if r.awaitsSince == nil && r.reason == "early" {
			r.awaitsSince = now()
		}

		q.t.failed[r.id] = r

		return 1
	}},
	{"SET awaits_since = clock_timestamp() +", "int8 int4 float8", "", func(q *query) int {
		if r, is := q.t.failed[arg[int64](q, 1)]; is && r.state == "waiting" && r.revision == int(arg[int32](q, 2)) {
			r.awaitsSince = after(arg[float64](q, 3))
			q.t.failed[r.id] = r
		}

		return 1
	}},
	{"SELECT EXISTS (SELECT FROM failed_messages WHERE id = $1", "int8 text", "bool", func(q *query) int {
		r := q.t.failed[arg[int64](q, 1)]
		q.add(r.state == "waiting" && deref(r.failedKey) == arg[string](q, 2))

		return 1
	}},
	{"DELETE FROM failed_messages WHERE id = $1 AND state IN", "int8 bytea uuid", "", func(q *query) int {
		if r, is := q.applied(); is && r.deliveries == 0 {
			delete(q.t.failed, r.id)
		}

		return 0
	}},
	{"resolution = 'applied', resolved_at", "int8 bytea uuid", "", func(q *query) int {
		if r, is := q.applied(); is {
			r.state, r.failedKey, r.resolved, r.resolvedAt = "resolved", nil, "applied", now()
			r.revision++
			q.t.failed[r.id] = r
		}

		return 0
	}},
	{"deliveries > 0 AND tried_at IS NULL AND EXISTS", "text text text[] int8", entryColumns + " bool interval", head},
	{"SELECT id FROM failed_messages WHERE consumer = $1 AND message_id", "text uuid int8", "int8", func(q *query) int {
		for _, r := range q.t.failed {
			if r.consumer == arg[string](q, 1) && r.messageID == arg[uuid.UUID](q, 2) && r.fingerprint == arg[int64](q, 3) {
				q.add(r.id)
			}
		}

		return 0
	}},
	{"WITH old AS", "int8 int4 text text text text text int4", "bool text bool", stop},
	{"UPDATE failed_messages SET failed_key = $2", "int8 text", "", func(q *query) int {
		r := q.t.failed[arg[int64](q, 1)]
		name := arg[string](q, 2)
		r.failedKey = &name
		q.t.failed[r.id] = r

		return 1
	}},
	{"INSERT INTO overtaking_messages", "text text[] int8[] uuid[] int4", "", overtake},
	{"SELECT '', o.messages", "int8[] int4", "text int8 uuid[] timestamptz int8", func(q *query) int {
		for _, id := range arg[[]int64](q, 1) {
			r := q.t.failed[id]
			if o, is := q.overtakes(r); is {
				q.add("", o.messages, o.lastIDs, o.lastAt, id)
			}
		}

		return 0
	}},
	{"IS DISTINCT FROM $2)", "int8 text", "int8 int8", func(q *query) int { q.add(int64(0), int64(0)); return 1 }},
}

func insertFailed(q *query) int {
	consumer, state, stored := arg[string](q, 1), arg[string](q, 15), arg[string](q, 16)

	for _, r := range q.t.failed {
		if r.consumer == consumer && r.messageID == arg[uuid.UUID](q, 4) && r.fingerprint == arg[int64](q, 5) {
			return 0
		}
	}

	if state == "stopped" && stored != "" {
		row := q.t.keys[key{consumer, stored}]
		q.t.keys[key{consumer, stored}] = row
	}

	q.w.failedSeq++
	r := failedRow{
		id: q.w.failedSeq, state: state, consumer: consumer, topic: arg[string](q, 2), key: arg[string](q, 3), messageID: arg[uuid.UUID](q, 4),
		fingerprint: arg[int64](q, 5), origin: arg[string](q, 6), headers: arg[string](q, 7), payload: arg[[]byte](q, 8),
		reason: arg[string](q, 9), err: arg[string](q, 10), cause: arg[string](q, 11), group: arg[string](q, 12), attempts: int(arg[int32](q, 13)),
		revision: 1, firstAt: time.Now(), lastAt: time.Now(),
	}

	if state == "waiting" || stored != "" {
		r.failedKey = &stored
	}

	if state == "stopped" {
		r.deliveries = 1
	}

	if r.err != "" {
		r.triedAt = now()
	}

	if _, is := q.t.keys[key{consumer, stored}]; r.failedKey != nil && !is {
		return q.fail("23503", "failed_messages_key: the key does not exist")
	}

	q.t.failed[r.id] = r

	return 1
}

func decided(q *query) int {
	var (
		ids, prints, keys   = arg[[]uuid.UUID](q, 2), arg[[]int64](q, 3), arg[[]string](q, 4)
		entries, revs, skip = arg[[]int64](q, 5), arg[[]int32](q, 6), arg[[]bool](q, 7)
		consumer            = arg[string](q, 1)
	)

	for i, id := range ids {
		is := false

		if entries[i] == 0 {
			for _, r := range q.t.failed {
				is = is || r.consumer == consumer && r.messageID == id && r.fingerprint == prints[i] && r.state == "stopped"
			}
		} else {
			r := q.t.failed[entries[i]]
			waiting := q.t.failedIn(key{consumer, keys[i]}, "waiting")
			is = r.state != "waiting" || r.revision != int(revs[i]) || !skip[i] && len(waiting) > 0 && waiting[0].id < entries[i]
		}

		if is {
			q.add(int64(i), true)
		}
	}

	return 0
}

// applied returns the failed message that has been applied, unless it has been edited or
// renamed since.
func (q *query) applied() (r failedRow, is bool) {
	r, is = q.t.failed[arg[int64](q, 1)]
	edited, as := arg[[]byte](q, 2), arg[*uuid.UUID](q, 3)
	same := bytes.Equal(r.edited, edited) && (r.edited == nil) == (edited == nil) && (as == nil) == (r.appliedAs == nil) && deref(as) == deref(r.appliedAs)

	return r, is && r.state != "resolved" && same
}

func head(q *query) int {
	k, from := key{arg[string](q, 1), arg[string](q, 2)}, arg[int64](q, 4)

	for _, r := range q.t.failedIn(k, "waiting") {
		if r.id > from && (from == 0 || r.triedAt == nil || r.reason != "early") {
			behind := r.deliveries > 0 && r.triedAt == nil && q.behind(r)
			q.add(append(entry(r), behind, time.Duration(0))...)

			return 0
		}
	}

	return 0
}

// behind reports whether an earlier message with the key, in another consumer that runs,
// was requeued and has not been tried.
func (q *query) behind(r failedRow) bool {
	for _, o := range q.t.failed {
		if o.consumer == r.consumer || deref(o.failedKey) != deref(r.failedKey) || o.state != "waiting" || o.id >= r.id || o.deliveries == 0 || o.triedAt != nil ||
			!slices.Contains(arg[[]string](q, 3), o.consumer) {
			continue
		}

		blocked := slices.ContainsFunc(q.t.failedIn(key{o.consumer, *o.failedKey}, "waiting"), func(p failedRow) bool { return p.id < o.id && p.triedAt != nil })
		if !blocked {
			return true
		}
	}

	return false
}

func stop(q *query) int {
	r, is := q.t.failed[arg[int64](q, 1)]
	if revision := int(arg[int32](q, 8)); !is || revision != 0 && revision != r.revision {
		return 0
	}

	old := r
	r.revision++
	r.deliveries++
	r.attempts, r.lastAt, r.triedAt = max(r.attempts, int(arg[int32](q, 2))), time.Now(), now()
	r.reason, r.err, r.cause, r.group = arg[string](q, 3), arg[string](q, 4), arg[string](q, 5), arg[string](q, 6)

	if old.resolved != "discarded" {
		r.state, r.resolved, r.resolvedAt = "stopped", "", nil
	}

	q.t.failed[r.id] = r

	var waitedFor *string
	if old.state == "waiting" {
		waitedFor = old.failedKey
	}

	q.add(old.state == "waiting" && old.deliveries > 0 || old.resolved == "applied", waitedFor, r.state == "stopped" && r.failedKey == nil)

	return 1
}

func overtake(q *query) int {
	consumer, entries, ids := arg[string](q, 1), arg[[]*int64](q, 3), arg[[]uuid.UUID](q, 4)

	for i, name := range arg[[]string](q, 2) {
		var last *failedRow

		for _, r := range q.t.failedIn(key{consumer, name}, "stopped") {
			if entries[i] == nil || r.id < *entries[i] {
				last = &r
			}
		}

		if last == nil {
			continue
		}

		o := overtaken{consumer, name, last.id}
		if entries[i] != nil {
			o.after = *entries[i]
		}

		row := q.t.overtaking[o]
		row.messages++
		row.lastIDs = append([]uuid.UUID{ids[i]}, row.lastIDs...)
		row.lastIDs = row.lastIDs[:min(len(row.lastIDs), 10)]
		row.lastAt = time.Now()
		q.t.overtaking[o] = row
	}

	return 1
}

// overtakes returns the messages that have overtaken a stopped one.
func (q *query) overtakes(r failedRow) (all overtakingRow, is bool) {
	for o, row := range q.t.overtaking {
		if r.in(key{o.consumer, o.key}) && o.after >= r.id {
			all.messages += row.messages
			all.lastIDs = append(all.lastIDs, row.lastIDs...)
			all.lastAt, is = row.lastAt, true
		}
	}

	return all, is
}

var operatorStatements = []statement{
	{"FROM paused_consumers ORDER BY", "", "text text text timestamptz timestamptz bool", func(q *query) int {
		for _, consumer := range slices.Sorted(maps.Keys(q.t.paused)) {
			q.add(consumer, "operator", "test", q.t.paused[consumer], (*time.Time)(nil), false)
		}

		return 0
	}},
	{"INSERT INTO paused_consumers", "text text text float8", "", func(q *query) int {
		q.t.paused[arg[string](q, 1)] = time.Now()

		return 1
	}},
	{"DELETE FROM paused_consumers WHERE consumer", "text", "", func(q *query) int {
		delete(q.t.paused, arg[string](q, 1))

		return 1
	}},
	{"SELECT count(DISTINCT id)", "int8[]", "int8", func(q *query) int { q.add(int64(0)); return 1 }},
	{"SELECT DISTINCT consumer, key, now()", "text[] text[]", "", func(q *query) int {
		for _, k := range keysOf(q) {
			row := q.t.keys[k]
			if row.due == nil {
				row.due = now()
			}

			q.t.keys[k] = row
		}

		return 0
	}},
	{"SET state = 'waiting', failed_key = r.key", "int8[] text[] uuid[]", "", func(q *query) int {
		names, renamed := arg[[]string](q, 2), arg[[]*uuid.UUID](q, 3)

		for i, id := range arg[[]int64](q, 1) {
			r := q.t.failed[id]
			r.state, r.failedKey, r.appliedAs, r.triedAt, r.awaitsSince = "waiting", &names[i], renamed[i], nil, nil
			r.revision++
			q.t.failed[id] = r
		}

		return 0
	}},
	{"AND $3::bigint[] @> ARRAY", "text[] text[] int8[]", "", func(q *query) int {
		for _, k := range keysOf(q) {
			if waiting := q.t.failedIn(k, "waiting"); len(waiting) > 0 && slices.Contains(arg[[]int64](q, 3), waiting[0].id) {
				row := q.t.keys[k]
				row.due = now()
				q.t.keys[k] = row
			}
		}

		return 0
	}},
	{"INSERT INTO operator_actions", "text text text[] text[] int8[] text[] bytea[] uuid[] uuid uuid", "", func(q *query) int {
		q.t.actions += len(arg[[]string](q, 3))

		return 0
	}},
	{"SET edited = nullif(e.edited", "int8[] bytea[]", "", func(q *query) int {
		edits := arg[[][]byte](q, 2)

		for i, id := range arg[[]int64](q, 1) {
			r := q.t.failed[id]
			r.edited = edits[i]
			r.revision++
			q.t.failed[id] = r
		}

		return 0
	}},
	{"resolution = 'discarded', resolved_at", "int8[]", "", func(q *query) int {
		for _, id := range arg[[]int64](q, 1) {
			r := q.t.failed[id]
			r.state, r.failedKey, r.resolved, r.resolvedAt = "resolved", nil, "discarded", now()
			r.revision++
			q.t.failed[id] = r
		}

		return 0
	}},
	{"FROM failed_messages WHERE consumer = $1 AND failed_key = $2 AND state = 'waiting' ORDER BY id LIMIT 1", "text text", entryColumns, func(q *query) int {
		for _, r := range q.t.failedIn(key{arg[string](q, 1), arg[string](q, 2)}, "waiting") {
			if len(q.rows) == 0 {
				q.add(entry(r)...)
			}
		}

		return 0
	}},
	{"FROM failed_messages WHERE id = $1", "int8", entryColumns, func(q *query) int {
		if r, is := q.t.failed[arg[int64](q, 1)]; is {
			q.add(entry(r)...)
		}

		return 0
	}},
}

// A statement with a condition of failed.Filter is told apart by its beginning, and has
// the parameters of its conditions.
var (
	conditions = map[string]*regexp.Regexp{
		"among": regexp.MustCompile(`id = ANY\(\$(\d)\)`), "below": regexp.MustCompile(`id < \$(\d)`), "above": regexp.MustCompile(`[^.]id > \$(\d)`),
	}
	filters = []statement{
		{"SELECT e.id, min(o.id)", "int8[] int8", "int8 int8", older},
		{"SELECT count(*), coalesce(max(id), 0) FROM failed_messages WHERE", "", "int8 int8", func(q *query) int {
			n, newest := 0, int64(0)

			for id, r := range q.t.failed {
				if r.state == "stopped" && q.selects(r) {
					n, newest = n+1, max(newest, id)
				}
			}

			q.add(int64(n), newest)

			return 1
		}},
		{"ORDER BY id LIMIT $1", "int8", entryColumns, func(q *query) int {
			for _, id := range slices.Sorted(maps.Keys(q.t.failed)) {
				if r := q.t.failed[id]; r.state == "stopped" && q.selects(r) && int64(len(q.rows)) < arg[int64](q, 1) {
					q.add(entry(r)...)
				}
			}

			return 0
		}},
	}
)

// filtered returns the statement with a filter, or nil.
func filtered(sql string) *statement {
	for _, f := range filters {
		if !strings.Contains(sql, f.text) {
			continue
		}

		params := strings.Fields(f.params)

		for strings.Contains(sql, fmt.Sprint("$", len(params)+1)) {
			n := strconv.Itoa(len(params) + 1)
			if m := conditions["among"].FindAllStringSubmatch(sql, -1); slices.ContainsFunc(m, func(m []string) bool { return m[1] == n }) {
				params = append(params, "int8[]")
			} else {
				params = append(params, "int8")
			}
		}

		f.params = strings.Join(params, " ")

		return &f
	}

	return nil
}

// selects reports whether the filter of a statement selects a row.
func (q *query) selects(r failedRow) bool {
	is := true

	for name, condition := range conditions {
		for _, m := range condition.FindAllStringSubmatch(q.sql, -1) {
			n := int(m[1][0] - '0')
			if n <= fixedParams(q.sql) {
				continue
			}

			switch name {
			case "among":
				is = is && slices.Contains(arg[[]int64](q, n), r.id)
			case "below":
				is = is && r.id < arg[int64](q, n)
			case "above":
				is = is && r.id > arg[int64](q, n)
			}
		}
	}

	return is
}

// fixedParams is the number of parameters before those of the filter.
func fixedParams(sql string) int {
	switch {
	case strings.Contains(sql, "SELECT e.id, min(o.id)"):
		return 2
	case strings.Contains(sql, "ORDER BY id LIMIT $1"):
		return 1
	default:
		return 0
	}
}

// older finds, for entries, an older stopped one with the same key that the filter does not select.
func older(q *query) int {
	for _, id := range arg[[]int64](q, 1) {
		e := q.t.failed[id]
		if e.failedKey == nil {
			continue
		}

		for _, o := range q.t.failedIn(key{e.consumer, *e.failedKey}, "stopped") {
			_, is := q.overtakes(o)
			if o.id < id && (o.id <= arg[int64](q, 2) || !q.selects(o)) && !is {
				q.add(id, o.id)

				break
			}
		}
	}

	return 0
}
