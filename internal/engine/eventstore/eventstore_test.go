package eventstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/eventstore"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

type counted struct {
	By int `json:"by"`
}

func (counted) EventType() string { return "Counted" }

func record(stream string, version, by int) eventstore.Record {
	return eventstore.Record{Stream: stream, Version: version, Data: counted{By: by}, MessageID: event.NewID()}
}

func appendTo(pool *pgxpool.Pool, records ...eventstore.Record) error {
	return postgres.InTx(context.Background(), pool, func(tx pgx.Tx) error {
		return eventstore.Append(context.Background(), tx, records)
	})
}

func TestVersionsAreConsecutive(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	if err := appendTo(pool, record("a", 1, 1), record("a", 2, 1), record("b", 1, 1)); err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		records []eventstore.Record
		want    *eventstore.ConflictError
	}{
		"taken":                     {[]eventstore.Record{record("a", 2, 1)}, &eventstore.ConflictError{Stream: "a", Expected: 1, Actual: 2}},
		"taken, then a free one":    {[]eventstore.Record{record("a", 2, 1), record("a", 3, 1)}, &eventstore.ConflictError{Stream: "a", Expected: 1, Actual: 2}},
		"a gap":                     {[]eventstore.Record{record("a", 4, 1)}, &eventstore.ConflictError{Stream: "a", Expected: 3, Actual: 2}},
		"a gap in a new stream":     {[]eventstore.Record{record("c", 2, 1)}, &eventstore.ConflictError{Stream: "c", Expected: 1, Actual: 0}},
		"one of several, the other": {[]eventstore.Record{record("b", 2, 1), record("a", 1, 1)}, &eventstore.ConflictError{Stream: "a", Expected: 0, Actual: 1}},
	} {
		err := appendTo(pool, c.records...)

		var conflict *eventstore.ConflictError
		if !errors.As(err, &conflict) {
			t.Errorf("%s: got %v, expected a conflict", name, err)

			continue
		}

		if diff := cmp.Diff(c.want, conflict); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*) FROM events`); n != 3 {
		t.Errorf("%d events are stored, expected 3", n)
	}
}

func TestOneOfTwoConcurrentWritersWins(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	results := make(chan error, 8)

	for range cap(results) {
		go func() { results <- appendTo(pool, record("a", 1, 1)) }()
	}

	won := 0

	for range cap(results) {
		var conflict *eventstore.ConflictError

		switch err := <-results; {
		case err == nil:
			won++
		case !errors.As(err, &conflict) || conflict.Actual != 1:
			t.Errorf("got %v, expected a conflict with version 1", err)
		}
	}

	if won != 1 {
		t.Errorf("%d writers won", won)
	}
}

func TestReadAllSkipsNoLateCommit(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	late, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if err := eventstore.Append(t.Context(), late, []eventstore.Record{record("late", 1, 1)}); err != nil {
		t.Fatal(err)
	}

	if err := appendTo(pool, record("early", 1, 1)); err != nil { // a higher position, committed first
		t.Fatal(err)
	}

	horizon := make(chan int64, 1)

	go func() {
		at, err := eventstore.Horizon(context.Background(), pool)
		if err != nil {
			t.Error(err)
		}
		horizon <- at
	}()

	select {
	case at := <-horizon:
		t.Fatalf("the horizon is %d while a lower position is open", at)
	case <-time.After(50 * time.Millisecond): // only returning too early fails the test
	}

	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	events, next, err := eventstore.ReadAll(t.Context(), pool, "", 0, <-horizon, 100)
	if err != nil || len(events) != 2 || events[0].Stream != "late" || next != events[1].Position {
		t.Errorf("got %+v up to %d, %v", events, next, err)
	}
}

type renamed struct {
	Amount int `json:"amount"`
}

func (renamed) EventType() string  { return "Renamed" }
func (renamed) SchemaVersion() int { return 3 }

func TestOldSchemasAreUpcast(t *testing.T) {
	t.Parallel()

	types := eventstore.Types{}
	eventstore.Register[renamed](types,
		func(old json.RawMessage) (json.RawMessage, error) { // 1 -> 2: by was called n
			var body struct{ N int }
			err := json.Unmarshal(old, &body)

			return json.RawMessage(fmt.Sprintf(`{"by":%d}`, body.N)), err
		},
		func(old json.RawMessage) (json.RawMessage, error) { // 2 -> 3: cents
			var body struct{ By int }
			err := json.Unmarshal(old, &body)

			return json.RawMessage(fmt.Sprintf(`{"amount":%d}`, 100*body.By)), err
		})

	for schema, data := range map[int]string{1: `{"n":7}`, 2: `{"by":7}`, 3: `{"amount":700}`} {
		got, err := types.Decode(eventstore.Event{Type: "Renamed", Schema: schema, Data: json.RawMessage(data)})
		if err != nil || got != (renamed{Amount: 700}) {
			t.Errorf("schema %d: got %+v, %v", schema, got, err)
		}
	}

	if _, err := types.Decode(eventstore.Event{Type: "Renamed", Schema: 4}); err == nil {
		t.Error("a newer schema was decoded")
	}

	if _, err := types.Decode(eventstore.Event{Type: "Other", Schema: 1}); err == nil {
		t.Error("an unknown type was decoded")
	}
}

func TestASnapshotReplacesEarlierEvents(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	if err := appendTo(pool, record("a", 1, 1), record("a", 2, 1), record("a", 3, 1), record("b", 1, 1)); err != nil {
		t.Fatal(err)
	}

	save := func(version int) {
		err := postgres.InTx(t.Context(), pool, func(tx pgx.Tx) error {
			return eventstore.SaveSnapshots(t.Context(), tx, []eventstore.Snapshot{
				{Stream: "a", Version: version, Schema: 1, Data: json.RawMessage(strconv.Itoa(version))},
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	save(2)
	save(1) // a late snapshot does not replace a newer one

	loaded, err := eventstore.Load(t.Context(), pool, []string{"a", "b", "c"}, 1)
	if err != nil {
		t.Fatal(err)
	}

	if a := loaded["a"]; a.Snapshot == nil || string(a.Snapshot.Data) != "2" || len(a.Events) != 1 || a.Events[0].Version != 3 {
		t.Errorf("a: got %+v", a)
	}

	if b := loaded["b"]; b.Snapshot != nil || len(b.Events) != 1 {
		t.Errorf("b: got %+v", b)
	}

	if _, there := loaded["c"]; there {
		t.Error("a stream that does not exist was loaded")
	}

	other, err := eventstore.Load(t.Context(), pool, []string{"a"}, 2)
	if err != nil || other["a"].Snapshot != nil || len(other["a"].Events) != 3 {
		t.Errorf("with another schema: got %+v, %v", other["a"], err)
	}
}

// totals is a projection of the streams named s..., which reveals gaps and duplicates.
func totals(t *testing.T, pool *pgxpool.Pool) (*eventstore.Projector, func()) {
	t.Helper()

	if _, err := pool.Exec(t.Context(), `CREATE TABLE totals (stream text PRIMARY KEY, total bigint NOT NULL, version int NOT NULL)`); err != nil {
		t.Fatal(err)
	}

	projector := eventstore.NewProjector(pool, []eventstore.Projection{{
		Name: "totals", Tables: []string{"totals"}, Streams: "s",
		Apply: func(ctx context.Context, tx pgx.Tx, events []eventstore.Event) error {
			for _, e := range events {
				var body counted
				if err := json.Unmarshal(e.Data, &body); err != nil {
					return err
				}

				_, err := tx.Exec(ctx, `
					INSERT INTO totals VALUES ($1, $2, 1)
					ON CONFLICT (stream) DO UPDATE SET total = totals.total + $2, version = totals.version + 1`, e.Stream, body.By)
				if err != nil {
					return err
				}
			}

			return nil
		},
	}}, pgtest.Logger(t))
	ctx, cancel := context.WithCancel(context.Background())

	var running sync.WaitGroup

	running.Go(func() { projector.Run(ctx) })
	running.Go(func() { projector.Run(ctx) }) // a second replica

	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)

	return projector, stop
}

// writeStreams appends concurrently to as many streams as there are writers.
func writeStreams(t *testing.T, pool *pgxpool.Pool, writers, each int) *sync.WaitGroup {
	t.Helper()

	var writing sync.WaitGroup

	for w := range writers {
		writing.Go(func() {
			for n := range each {
				if err := appendTo(pool, record(fmt.Sprint("s", w), n+1, n)); err != nil {
					t.Error(err)
				}
			}
		})
	}

	return &writing
}

func TestAProjectionIsRebuiltUnderTraffic(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	projector, _ := totals(t, pool)

	const writers, each = 4, 300

	if err := appendTo(pool, record("another", 1, 1)); err != nil { // not in the projection's streams
		t.Fatal(err)
	}

	writing := writeStreams(t, pool, writers, each)

	// Damage the table, as a since-fixed bug in the projection might have done.
	pgtest.Eventually(t, "the projection has started", func() bool {
		return pgtest.Value[int](t, pool, `SELECT count(*) FROM totals`) > 0
	})

	if _, err := pool.Exec(t.Context(), `UPDATE totals SET total = -1000000`); err != nil {
		t.Fatal(err)
	}

	var last int64

	for range 3 {
		err := projector.Rebuild(t.Context(), "totals", func(done, total int64) {
			if done > total {
				t.Errorf("progress %d of %d", done, total)
			}

			last = done
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	if last == 0 {
		t.Error("no progress was reported")
	}

	writing.Wait()
	pgtest.Eventually(t, "the projection is up to date", func() bool {
		return pgtest.Value[int](t, pool, `SELECT coalesce(sum(version), 0)::int FROM totals`) == writers*each
	})

	if n := pgtest.Value[int](t, pool, `SELECT count(*) FROM totals WHERE version <> $1 OR total <> $2`, each, each*(each-1)/2); n != 0 {
		t.Errorf("%d totals are wrong", n)
	}

	status, err := projector.Status(t.Context())
	if err != nil || len(status) != 1 || status[0].RebuiltAt == nil || status[0].Behind != 0 {
		t.Errorf("got %+v, %v", status, err)
	}

	if err := projector.Rebuild(t.Context(), "nothing", nil); event.KindOf(err) != event.Unknown {
		t.Errorf("got %v", err)
	}
}

func TestARebuiltTableKeepsItsProperties(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	projector, _ := totals(t, pool)

	// Operators may set privileges and storage parameters.
	_, err := pool.Exec(t.Context(), `
		ALTER TABLE totals SET (fillfactor = 70, autovacuum_vacuum_threshold = 7);
		COMMENT ON TABLE totals IS 'The operator''s own';
		COMMENT ON COLUMN totals.total IS 'The sum';
		GRANT SELECT ON totals TO PUBLIC;
		GRANT SELECT, UPDATE ON totals TO pg_monitor;
		CREATE INDEX totals_total ON totals (total)`)
	if err != nil {
		t.Fatal(err)
	}

	const likeness = `
		SELECT concat_ws(' ', c.reloptions, obj_description(c.oid), col_description(c.oid, 2), c.relacl,
			(SELECT count(*) FROM pg_index WHERE indrelid = c.oid), (SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid))
		FROM pg_class c WHERE c.oid = 'totals'::regclass`

	before := pgtest.Value[string](t, pool, likeness)

	if err := projector.Rebuild(t.Context(), "totals", func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}

	if diff := cmp.Diff(before, pgtest.Value[string](t, pool, likeness)); diff != "" {
		t.Error(diff)
	}
}

func TestStreamsAreLookedUpByKey(t *testing.T) {
	t.Parallel()

	pgtest.LooksUpByKey(t, []string{"events"},
		func(t *testing.T, tx pgx.Tx, from, to int) {
			t.Helper()

			_, err := tx.Exec(t.Context(), `
				INSERT INTO events (stream, version, type, data, message_id)
				SELECT 's' || n, 1, 'Counted', '{"by": 1}', gen_random_uuid() FROM generate_series($1::int, $2::int) AS n`, from, to)
			if err != nil {
				t.Fatal(err)
			}
		},
		func(t *testing.T, tx pgx.Tx) {
			t.Helper()

			loaded, err := eventstore.Load(t.Context(), tx, []string{"s1", "s2", "none"}, 1)
			if err != nil || len(loaded) != 2 {
				t.Fatalf("%v, %v", loaded, err)
			}

			next := len(loaded["s1"].Events) + 1
			records := []eventstore.Record{record("s1", next, 1), record("s1", next+1, 1), record(event.NewID().String(), 1, 1)}

			if err := eventstore.Append(t.Context(), tx, records); err != nil {
				t.Fatal(err)
			}
		})
}

// TestAQueuedRecordThatFollowsNothingIsAnError: its caller neither holds the stream nor
// begins it.
func TestAQueuedRecordThatFollowsNothingIsAnError(t *testing.T) {
	t.Parallel()

	pool, batch := pgtest.New(t), &pgx.Batch{}

	if err := eventstore.Queue(batch, []eventstore.Record{record("a", 1, 1), record("b", 2, 1)}); err != nil {
		t.Fatal(err)
	}

	if err := pool.SendBatch(t.Context(), batch).Close(); err == nil || !strings.Contains(err.Error(), "only 1 of 2 follow") {
		t.Errorf("got %v", err)
	}
}
