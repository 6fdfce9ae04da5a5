package app_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/invariant"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// roles is a database with the roles from docs/deploying.md.
type roles struct {
	name                   string
	admin                  *pgx.Conn
	owner, service, reader string // addresses
	reading                string // the SQL with which the owner lets the reader read
}

var sqlBlock = regexp.MustCompile("(?s)```sql\n(.*?)```")

// newRoles runs the SQL from docs/deploying.md with its own names.
func newRoles(t *testing.T) *roles {
	t.Helper()

	page, err := os.ReadFile(filepath.Join(pgtest.Root(), "docs", "deploying.md"))
	if err != nil {
		t.Fatal(err)
	}

	blocks := sqlBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 3 {
		t.Fatalf("docs/deploying.md has %d blocks of SQL, expected those of the superuser and the owner, and that of the readers", len(blocks))
	}

	server, err := pgtest.Setting("MILLRACE_TEST_DATABASE_URL")
	if err != nil {
		t.Fatal(err)
	}

	r := &roles{name: fmt.Sprintf("roles_%d", time.Now().UnixNano()), admin: connect(t, server)}
	names := strings.NewReplacer("millrace_owner", r.name+"_owner", "millrace_service", r.name+"_service", "millrace_reader", r.name+"_reader", "DATABASE millrace", "DATABASE "+r.name)

	t.Cleanup(func() {
		for _, sql := range []string{`DROP DATABASE IF EXISTS ` + r.name + ` WITH (FORCE)`, `DROP ROLE IF EXISTS ` + r.name + `_owner, ` + r.name + `_service, ` + r.name + `_reader`} {
			if _, err := r.admin.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})

	address := func(role, password string) string {
		u, err := url.Parse(server)
		if err != nil {
			t.Fatal(err)
		}

		u.User, u.Path = url.UserPassword(r.name+role, password), "/"+r.name

		return u.String()
	}

	for statement := range strings.SplitSeq(names.Replace(blocks[0][1]), ";\n") {
		r.exec(t, r.admin, statement)
	}

	r.owner, r.service, r.reader = address("_owner", "change me"), address("_service", "change me too"), address("_reader", "change me as well")
	r.reading = names.Replace(blocks[2][1])
	r.exec(t, connect(t, r.owner), names.Replace(blocks[1][1]))

	return r
}

func (r *roles) exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()

	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// asOwner returns a service that connects as the owner, as `millrace migrate` and
// `millrace upkeep` do.
func (r *roles) asOwner(t *testing.T) *apptest.Service {
	t.Helper()

	return apptest.New(t, r.owner)
}

func migrated(t *testing.T) *roles {
	t.Helper()

	r := newRoles(t)
	owner := r.asOwner(t)

	if _, err := postgres.Migrate(t.Context(), owner.Pool, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}

	if _, err := owner.Operator.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}

	return r
}

// serves runs a service until it has completed an order and projected a user.
func serves(t *testing.T, s *apptest.Service) {
	t.Helper()

	s.Run()
	s.Seed()
	place(s, "a")
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	s.WaitForOrder("a", "completed")
	pgtest.Eventually(t, "the user is projected", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })
	s.WaitUntilIdle()
}

func TestTheRolesOfTheDocumentationSuffice(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	s := apptest.New(t, r.service)
	serves(t, s)

	if done, err := s.Operator.Upkeep(t.Context()); err != nil {
		t.Errorf("upkeep: %+v, %v", done, err)
	}

	if err := s.Projector.Rebuild(t.Context(), "users", func(int64, int64) {}); err == nil || !strings.Contains(err.Error(), "belongs to "+r.name+"_owner") {
		t.Errorf("rebuilding as the service: got %v", err)
	}

	if err := r.asOwner(t).Projector.Rebuild(t.Context(), "users", func(int64, int64) {}); err != nil {
		t.Errorf("rebuilding as the owner: %v", err)
	}

	s.Publish("user.created", `{"user":{"id":"bob","name":"Bob","email":"bob@example.com"}}`)
	pgtest.Eventually(t, "the service may use the new tables", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 2 })
}

// Tables that are created later, for example by a rebuild, are also readable. Keys never
// are.
func TestTheRoleThatReadsSeesEverythingButTheKeysAndChangesNothing(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	owner := connect(t, r.owner)
	r.exec(t, owner, r.reading)

	s := apptest.New(t, r.service)
	s.Run()
	s.Seed()
	place(s, "a")
	s.WaitForOrder("a", "completed")
	s.Stop()

	if err := r.asOwner(t).Projector.Rebuild(t.Context(), "users", func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}

	reads := apptest.New(t, r.reader) // as `millrace orders show` does
	if details, err := reads.Orders.Show(t.Context(), "a"); err != nil || details.Status != "completed" {
		t.Errorf("got %+v, %v", details, err)
	}

	reader := connect(t, r.reader)

	for _, table := range pgtest.Values[string](t, owner, `SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname`) {
		_, err := reader.Exec(t.Context(), `SELECT FROM `+table+` LIMIT 1`)
		if secret := table == "user_keys"; (err != nil) != secret {
			t.Errorf("reading %s: got %v", table, err)
		}

		for _, sql := range []string{`DELETE FROM ` + table, `TRUNCATE ` + table, `DROP TABLE ` + table} {
			if _, err := reader.Exec(t.Context(), sql); err == nil {
				t.Errorf("%s is allowed", sql)
			}
		}
	}
}

// A partition is due, and the owner has not created it.
func TestWithoutPartitionsRowsGoToTheDefaultPartition(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	today := time.Now().UTC()
	owner := connect(t, r.owner)

	for _, day := range []time.Time{today, today.AddDate(0, 0, 1)} {
		for _, table := range []string{"inbox_", "analytics_events_"} {
			r.exec(t, owner, `DROP TABLE `+table+day.Format("20060102"))
		}
	}

	var log bytes.Buffer

	s := apptest.NewWithLog(t, r.service, slog.New(slog.NewTextHandler(&log, nil)))
	s.Run()
	s.Seed()
	place(s, "a")
	s.WaitForOrder("a", "completed")
	s.Publish("analytics.track", fmt.Sprintf(`{"event":"e","timestamp":%d}`, today.Unix()))

	inbox := func() int { return apptest.Value[int](s, `SELECT count(*) FROM inbox_default`) }
	tracked := func() int { return apptest.Value[int](s, `SELECT count(*) FROM analytics_events_default`) }

	if inbox() == 0 {
		t.Error("no row is in the default partition")
	}

	pgtest.Eventually(t, "the event is in the default partition", func() bool { return tracked() == 1 })

	if _, err := s.Operator.Upkeep(t.Context()); err == nil || !strings.Contains(err.Error(), "run `millrace upkeep` as ") || strings.Contains(err.Error(), "that role") {
		t.Errorf("upkeep as the service: got %v", err)
	}

	if _, err := r.asOwner(t).Operator.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}

	if n := inbox() + tracked(); n != 0 {
		t.Errorf("%d rows are still in the default partitions", n)
	}

	if _, err := s.Operator.Upkeep(t.Context()); err != nil {
		t.Errorf("upkeep as the service: got %v", err)
	}

	s.Stop()

	for _, says := range []string{"rows go to the default partition", "run `millrace upkeep` as", r.name + "_owner"} {
		if !strings.Contains(log.String(), says) {
			t.Errorf("the log does not contain %q:\n%s", says, log.String())
		}
	}
}

// refusal starts the service, and returns the reason why it does not start.
func (r *roles) refusal(t *testing.T) string {
	t.Helper()

	s := apptest.New(t, r.service)
	err := s.Service.Run(t.Context(), func() { t.Error("it started") })

	setup, ok := errors.AsType[*postgres.SetupError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}

	return setup.Problem
}

func TestAServiceWithoutPrivilegesPrintsTheGrants(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	owner := connect(t, r.owner)
	role := r.name + "_service"

	for _, sql := range []string{
		`REVOKE SELECT ON ALL SEQUENCES IN SCHEMA public FROM ` + role,
		`REVOKE INSERT, DELETE ON orders FROM ` + role,
		`REVOKE ALL ON inbox, stock FROM ` + role,
		`REVOKE ALL ON goose_db_version FROM ` + role,
	} {
		r.exec(t, owner, sql)
	}

	problem := r.refusal(t)
	for _, grant := range []string{
		`GRANT SELECT ON SEQUENCE public.events_position_seq, public.failed_messages_id_seq, public.operator_actions_id_seq, public.outbox_seq_seq TO ` + role + `;`,
		`GRANT INSERT, DELETE ON TABLE public.orders TO ` + role + `;`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE public.inbox, public.stock TO ` + role + `;`,
		`GRANT SELECT ON TABLE public.goose_db_version TO ` + role + `;`,
	} {
		if !strings.Contains(problem, grant) {
			t.Errorf("%s is missing in:\n%s", grant, problem)
		}
	}

	_, grants, _ := strings.Cut(problem, "\n")
	r.exec(t, owner, grants)
	apptest.New(t, r.service).Run() // the grants suffice
}

func TestAServiceWorksBehindAPoolerOfSessions(t *testing.T) {
	t.Parallel()

	s := apptest.New(t, pgtest.Pooled(t, migrated(t).service, "session"))
	s.Run()
	s.Seed()
	place(s, "a")
	s.WaitForOrder("a", "completed")
}

// The service cannot set up sessions that are shared between clients.
func TestAServiceBehindAPoolerOfTransactionsPrintsTheSettingsOfItsRole(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	pooled := pgtest.Pooled(t, r.service, "transaction")
	behind := func(c *config.Config) { c.Postgres.DirectURL = postgres.Secret(r.service) }

	err := apptest.New(t, pooled, behind).Service.Run(t.Context(), func() { t.Error("it started") })

	refused, ok := errors.AsType[*postgres.SetupError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}

	_, statements, _ := strings.Cut(refused.Problem, "\n")
	r.exec(t, connect(t, r.service), statements) // a role may change its own settings

	r.exec(t, r.admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+r.name+`'`) // RECONNECT

	s := apptest.New(t, pooled, behind)
	serves(t, s)

	if _, err := s.Operator.Upkeep(t.Context()); err != nil {
		t.Errorf("upkeep: %v", err)
	}

	if report, err := s.Audit.Run(t.Context(), invariant.Options{}); err != nil || report.Err() != nil {
		t.Errorf("the audit: %v, %v", report, err)
	}
}

func TestAServiceThatMayNotUseTheSchemaPrintsTheGrant(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	r.exec(t, connect(t, r.owner), `REVOKE USAGE ON SCHEMA public FROM PUBLIC, `+r.name+`_service`)

	if problem := r.refusal(t); !strings.Contains(problem, `GRANT USAGE ON SCHEMA public TO `+r.name+`_service;`) {
		t.Errorf("got %s", problem)
	}
}

func TestAServiceWithoutItsTablesSaysWhatIsMissing(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	owner := connect(t, r.owner)
	r.exec(t, owner, `DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`)

	if problem := r.refusal(t); !strings.Contains(problem, "run `millrace migrate up`") {
		t.Errorf("got %s", problem)
	}

	r.exec(t, owner, `ALTER TABLE orders RENAME TO renamed`)

	if problem := r.refusal(t); !strings.Contains(problem, "table orders is missing") {
		t.Errorf("got %s", problem)
	}
}

func TestMigratingWithoutTheRightSaysWhatToDo(t *testing.T) {
	t.Parallel()

	r := newRoles(t)
	s := apptest.New(t, r.service, func(c *config.Config) { c.Postgres.MigrateOnStart = true })

	err := s.Service.Run(t.Context(), func() { t.Error("it started") })
	if err == nil || !strings.Contains(err.Error(), "run `millrace migrate up` as the owner of the database") {
		t.Errorf("got %v", err)
	}
}

// A privilege that is revoked while the service runs is not a message's fault.
func TestALostPrivilegeStopsNoMessage(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	owner := connect(t, r.owner)
	role := r.name + "_service"
	s := apptest.New(t, r.service, func(c *config.Config) { c.Consumer.Retries, c.Consumer.ParkAttempts = 0, 1 })
	s.Run()
	s.Seed()

	r.exec(t, owner, `REVOKE INSERT ON orders FROM `+role)
	place(s, "a")
	pgtest.Eventually(t, "the service says why it waits", func() bool {
		for _, d := range s.Dependencies.States() {
			if strings.Contains(d.Why, "permission denied for table orders") {
				return true
			}
		}

		return false
	})
	r.exec(t, owner, `GRANT INSERT ON orders TO `+role)
	s.WaitForOrder("a", "completed")
}

// The relay and the projections read the last number of a sequence.
func TestHaltedBackgroundWorkIsInTheHealth(t *testing.T) {
	t.Parallel()

	r := migrated(t)
	owner := connect(t, r.owner)
	sequences := `ON ALL SEQUENCES IN SCHEMA public`
	s := apptest.New(t, r.service)
	s.Run()
	s.Seed()

	r.exec(t, owner, `REVOKE SELECT `+sequences+` FROM `+r.name+`_service`)
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)

	halted := func(task string) bool {
		return slices.ContainsFunc(s.Operator.Health(), func(trouble health.Trouble) bool {
			return trouble.Kind == health.Task && trouble.Name == task && trouble.Since != nil &&
				strings.Contains(trouble.Reason, "permission denied for sequence") && strings.Contains(trouble.Remedy, "docs/deploying.md")
		})
	}

	status := s.Operator.Status(t.Context(), s.HealthAddr())
	if status.Counts() == nil || len(status.Database.Gaps) != 1 {
		t.Errorf("one part that cannot be read hides others: %+v", status.Database)
	}

	if !slices.ContainsFunc(status.Troubles, func(trouble health.Trouble) bool {
		return trouble.Kind == health.Postgres && trouble.Name == "projections" && strings.Contains(trouble.Reason, "could not be read: ") &&
			strings.Contains(trouble.Remedy, "docs/deploying.md")
	}) || slices.ContainsFunc(status.Troubles, func(trouble health.Trouble) bool { return trouble.Kind == health.Dependency }) {
		t.Errorf("expected that the projections cannot be read and that Postgres is up, got %+v", status.Troubles)
	}

	for _, task := range []string{"projections", "relay"} {
		pgtest.Eventually(t, task+" is named with the reason and the remedy", func() bool { return halted(task) })
	}

	r.exec(t, owner, `GRANT SELECT `+sequences+` TO `+r.name+`_service`)
	pgtest.Eventually(t, "the user is projected", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })
	pgtest.Eventually(t, "nothing is halted", func() bool { return !halted("projections") && !halted("relay") })
}

func TestTablesMayBeInAnotherSchema(t *testing.T) {
	t.Parallel()

	address := pgtest.URL(t)
	admin := connect(t, address)
	name := pgtest.Value[string](t, admin, `SELECT current_database()::text`)

	for _, sql := range []string{
		`DROP SCHEMA public CASCADE`, `CREATE SCHEMA shop`, `ALTER DATABASE ` + name + ` SET search_path = shop`,
	} {
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	s := apptest.New(t, address, func(c *config.Config) { c.Postgres.MigrateOnStart = true })
	s.Run()
	s.Seed()
	place(s, "a")
	s.Publish("user.created", `{"user":{"id":"alice","name":"Alice","email":"alice@example.com"}}`)
	s.WaitForOrder("a", "completed")
	pgtest.Eventually(t, "the user is projected", func() bool { return apptest.Value[int](s, `SELECT count(*) FROM users`) == 1 })

	if err := s.Projector.Rebuild(t.Context(), "users", func(int64, int64) {}); err != nil {
		t.Error(err)
	}

	if n := apptest.Value[int](s, `SELECT count(*) FROM shop.users`); n != 1 {
		t.Errorf("%d users after the rebuild", n)
	}

	if report, err := s.Audit.Run(t.Context(), invariant.Options{}); err != nil || report.Err() != nil {
		t.Errorf("the audit: %v, %v", report, err)
	}
}
