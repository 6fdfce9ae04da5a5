package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// prepare runs SQL in the database that a command is about to use.
func prepare(t *testing.T, url, sql string) {
	t.Helper()

	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())

	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestAuditReportsAndRepairs(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	prepare(t, url, `INSERT INTO stock (product_id, supplied, available, reserved) VALUES ('p', 10, 7, 3), ('q', 1, 1, 0)`)

	expectEach(t, url, []invocation{
		{"audit --only nonsense", exitUsage, "there is no check nonsense, expected one of in-flight"},
		{"audit --dry-run", exitUsage, "--dry-run requires --repair"},
		{"audit --only stock,reservations", exitFailure, "p: 3 reserved, but orders hold 0\n  What to do: `--repair`"},
		{"audit --only stock,reservations", exitFailure, "the audit found 1 violation: reservations"},
		{"audit --repair --dry-run", exitFailure, "Would be repaired:\n  reservations p: available 7 -> 10, reserved 3 -> 0, sold 0 -> 0"},
		{"audit --repair --by me", 0, "Repaired; the checks above ran after the repair:\n  reservations p: available 7 -> 10"},
		{"audit", 0, "2 products"},
	})

	out, code := run(t, url, "audit", "--json", "--only", "stock")

	var result operate.Audit
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 0 || result.Checks[0].Examined != 2 {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
}

func TestARepairIsReportedAlthoughTheChecksFailAfterwards(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	prepare(t, url, `
		INSERT INTO stock (product_id, supplied, available, reserved) VALUES ('p', 10, 7, 3);
		CREATE FUNCTION break_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ALTER TABLE orders RENAME TO away; RETURN NULL; END $$;
		CREATE TRIGGER break_down AFTER INSERT ON operator_actions EXECUTE FUNCTION break_down()`)

	out, code := run(t, url, "audit", "--repair", "--by", "me")
	if code != exitFailure || !strings.Contains(out, "Repaired:\n  reservations p: available 7 -> 10") || !strings.Contains(out, "SQLSTATE 42P01") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestUpkeepReportsWhatItDid(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	prepare(t, url, `
		INSERT INTO inbox (consumer, message_id, day, fingerprint, applied_at) VALUES ('c', gen_random_uuid(), '1970-01-01', 0, now() - interval '8 days')`)

	out, code := run(t, url, "upkeep", "--json")

	var result operate.Upkeep
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}

	for _, task := range result.Tasks {
		want := int64(0)
		if task.Task == "inbox rows without a day" {
			want = 1
		}

		if task.Removed != want {
			t.Errorf("%s removed %d, expected %d", task.Task, task.Removed, want)
		}
	}

	if out, code := run(t, url, "upkeep"); code != 0 || !strings.Contains(out, "inbox partitions") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
