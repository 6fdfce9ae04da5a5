package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// Lab has the servers of all runs. Each run has its own database, and its own topics or
// virtual host.
type Lab struct {
	dir      string
	postgres *server.Postgres
	brokers  map[string]*server.Broker

	mu   sync.Mutex
	runs int
	// hosts are the virtual hosts of RabbitMQ that no run has used.
	hosts []string
}

// template is the migrated database that runs copy.
const template = "template_crash"

// NewLab starts Postgres. A broker is started by the first run that needs it. The program
// migrates the database.
func NewLab(ctx context.Context, program string) (l *Lab, err error) {
	l = &Lab{brokers: map[string]*server.Broker{}}

	if l.dir, err = server.NewDir(); err != nil {
		return nil, err
	}

	// Nothing ends Postgres here, so it need not wait for the disk.
	l.postgres, err = server.StartPostgres(ctx, l.dir, "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200", "autovacuum=off")
	if err != nil {
		return l, err
	}

	if err = l.create(ctx, template, "template0"); err != nil {
		return l, err
	}

	cmd := exec.CommandContext(ctx, program, "migrate", "up")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+l.postgres.URL(template))

	if out, err := cmd.CombinedOutput(); err != nil {
		return l, fmt.Errorf("migrating: %w: %s", err, out)
	}

	return l, nil
}

// Close ends the servers. It deletes their files, unless keep is true.
func (l *Lab) Close(keep bool) error {
	ctx := context.Background()

	var errs []error

	for _, b := range l.brokers {
		if b != nil {
			errs = append(errs, b.Kill(ctx))
		}
	}

	if l.postgres != nil {
		errs = append(errs, l.postgres.Kill())
	}

	if !keep {
		errs = append(errs, os.RemoveAll(l.dir))
	}

	return errors.Join(errs...)
}

func (l *Lab) create(ctx context.Context, database, from string) error {
	conn, err := pgx.Connect(ctx, l.postgres.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()

	_, err = conn.Exec(ctx, `CREATE DATABASE `+database+` TEMPLATE `+from+` STRATEGY file_copy`)

	return err
}

// place returns the name of a new database, which is also the prefix of the run's topics,
// and the address of the broker for the run.
func (l *Lab) place(ctx context.Context, kind string) (name, address string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock() // a database that is copied must not be in use

	l.runs++
	name = fmt.Sprintf("crash_%d", l.runs)

	if err := l.create(ctx, name, template); err != nil {
		return "", "", err
	}

	if kind == server.Embedded {
		return name, "", nil
	}

	if l.brokers[kind] == nil {
		if l.brokers[kind], err = server.StartBroker(ctx, kind, l.dir); err != nil {
			return "", "", err
		}
	}

	address = l.brokers[kind].Address()
	if kind == server.Kafka {
		return name, address, nil
	}

	if len(l.hosts) == 0 {
		if err := l.addHosts(ctx); err != nil {
			return "", "", err
		}
	}

	address += l.hosts[0]
	l.hosts = l.hosts[1:]

	return name, address, nil
}

// addHosts adds virtual hosts. rabbitmqctl takes a second for each call, so one call adds
// many.
func (l *Lab) addHosts(ctx context.Context) error {
	const n = 16

	var names []string

	for i := range n {
		names = append(names, fmt.Sprintf("crash_%d_%d", l.runs, i))
	}

	_, err := l.brokers[server.RabbitMQ].Control(ctx, "eval", `
		[begin
			rabbit_vhost:add(V, <<"proof">>),
			rabbit_auth_backend_internal:set_permissions(<<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"proof">>)
		end || V <- [<<"`+strings.Join(names, `">>, <<"`)+`">>]].`)
	l.hosts = append(l.hosts, names...)

	return err
}

// Dir is the directory with the logs.
func (l *Lab) Dir() string { return filepath.Clean(l.dir) }
