package invariant_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// numbers is a source with its own table, whose numbers must be positive and even.
func numbers(t *testing.T, pool *pgxpool.Pool) invariant.Source {
	t.Helper()
	execute(t, pool, `CREATE TABLE numbers (n int PRIMARY KEY); INSERT INTO numbers VALUES (-2), (1), (2), (3)`)

	return invariant.Source{
		Name: "numbers", Count: `SELECT count(*) FROM numbers`, Rows: `SELECT n::text AS id, n FROM numbers`,
		Checks: []invariant.Check{
			{Name: "positive", Fault: `CASE WHEN n < 0 THEN 'is negative' END`, Repair: remove},
			{Name: "even", Fault: `CASE WHEN n % 2 <> 0 THEN 'is odd' END`, Repair: remove},
		},
	}
}

// remove deletes odd numbers and refuses to delete others.
func remove(ctx context.Context, tx pgx.Tx, id string) (string, error) {
	if id == "-2" {
		return "", invariant.Refuse("it might be needed")
	}

	tag, err := tx.Exec(ctx, `DELETE FROM numbers WHERE n = $1::text::int`, id)
	if err != nil || tag.RowsAffected() == 0 {
		return "", err
	}

	return "removed", nil
}

func execute(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()

	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func run(t *testing.T, auditor *invariant.Auditor, options invariant.Options) invariant.Report {
	t.Helper()

	report, err := auditor.Run(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}

	return report
}

func TestChecksOfASourceRunInOnePass(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	report := run(t, invariant.New(pool, numbers(t, pool)), invariant.Options{Only: []string{"even", "positive"}, Limit: 1})

	want := []invariant.Result{
		{Name: "positive", What: "numbers", Examined: 4, Violations: 1, First: []invariant.Violation{{ID: "-2", Detail: "is negative"}}},
		{Name: "even", What: "numbers", Examined: 4, Violations: 2, First: []invariant.Violation{{ID: "1", Detail: "is odd"}}},
	}
	if diff := cmp.Diff(want, report.Checks); diff != "" {
		t.Error(diff)
	}

	violated, _ := errors.AsType[*invariant.ViolatedError](report.Err())
	if violated == nil || violated.Violations != 3 || !slices.Equal(violated.Checks, []string{"positive", "even"}) {
		t.Errorf("got %v", report.Err())
	}
}

func TestAnUnknownCheckIsRefused(t *testing.T) {
	t.Parallel()

	_, err := invariant.New(nil).Run(t.Context(), invariant.Options{Only: []string{"outbox", "nonsense"}})
	if event.KindOf(err) != event.Unknown {
		t.Errorf("got %v", err)
	}
}

func TestRepair(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	auditor := invariant.New(pool, numbers(t, pool))
	report := run(t, auditor, invariant.Options{})

	execute(t, pool, `DELETE FROM numbers WHERE n = 3`) // so its violation is gone before the repair

	want := []invariant.Repair{{Check: "positive", ID: "-2", Refused: "it might be needed"}, {Check: "even", ID: "1", What: "removed"}}

	for _, dry := range []bool{true, false} {
		repairs, err := auditor.Repair(t.Context(), report, activity.Actor{Who: "somebody"}, dry)
		if diff := cmp.Diff(want, repairs); err != nil || diff != "" {
			t.Errorf("dry run %t: %v %s", dry, err, diff)
		}

		left := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM numbers WHERE n = 1`)
		if dry != (left == 1) {
			t.Errorf("dry run %t: %d rows are left", dry, left)
		}
	}
}

func TestChecksOfTheEngine(t *testing.T) {
	t.Parallel()

	for name, corrupt := range map[string]string{
		"": `
			INSERT INTO failed_messages (state, deliveries, reason, consumer, topic, key, message_id, fingerprint, origin, headers, payload)
			VALUES ('stopped', 1, 'invalid', 'c', 't', 'k', gen_random_uuid(), 7, '', '{}', '')`, // erased
		"streams": `INSERT INTO events (stream, version, type, data, message_id) SELECT 's', v, 'T', '{}', gen_random_uuid() FROM unnest('{1,3}'::int[]) AS v`,
		"projections": `
			INSERT INTO events (stream, version, type, data, message_id, recorded_at) VALUES ('s', 1, 'T', '{}', gen_random_uuid(), now() - interval '1 hour');
			INSERT INTO projections (name, position) VALUES ('p', 0) ON CONFLICT (name) DO UPDATE SET position = 0`,
		"outbox": `
			INSERT INTO outbox (shard, topic, message_id, key, correlation_id, payload, created_at)
			SELECT 0, 't', id, 'k', id, '', now() - interval '1 hour' FROM gen_random_uuid() AS id`,
		"inbox": `
			INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES ('c', '01890a5d-ac96-774b-bcce-b302099a8057', date '1970-01-01', 0)`,
		"failed": `
			INSERT INTO failed_messages (state, deliveries, reason, consumer, topic, key, message_id, fingerprint, origin, headers, payload)
			VALUES ('stopped', 1, 'invalid', 'c', 't', 'k', gen_random_uuid(), 0, '', '{}', 'x')`,
		"waiting": `INSERT INTO failed_keys (consumer, key, due_at) VALUES ('c', 'k', now())`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			pool := pgtest.New(t)
			execute(t, pool, corrupt)

			found := ""

			for _, c := range run(t, invariant.New(pool), invariant.Options{}).Checks {
				if c.Violations > 0 {
					found += c.Name
				}
			}

			if found != name {
				t.Errorf("found violations of %q, expected %q", found, name)
			}
		})
	}
}
