package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// The addresses at the two ends of the connection to the network namespace. The network
// is reserved for documentation (RFC 5737), so no real host has them.
const (
	outside = "203.0.113.1"
	inside  = "203.0.113.2"
)

// readyTimeout bounds each step that waits for the service.
const readyTimeout = 60 * time.Second

// container is the running image.
type container struct {
	*test

	// tag is the name of the image.
	tag   string
	image image
	// database is the URL of the container's database, as seen from the container.
	database string
	started  bool
	pid      string
}

// createDatabase creates an empty database in the tests' Postgres.
func (c *container) createDatabase(ctx context.Context) error {
	const variable = "MILLRACE_TEST_DATABASE_URL"

	server, err := url.Parse(os.Getenv(variable))
	if err != nil || server.Host == "" {
		return fmt.Errorf("%s: expected the URL of a Postgres: run `make services`", variable)
	}

	execute := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, server.String())
		if err != nil {
			return err
		}
		defer conn.Close(ctx) //nolint:errcheck // the statement is done

		_, err = conn.Exec(ctx, sql)

		return err
	}

	if err := execute(ctx, "CREATE DATABASE "+c.name); err != nil {
		return err
	}

	c.cleanUp(func(ctx context.Context) error { return execute(ctx, "DROP DATABASE "+c.name+" WITH (FORCE)") })

	own := *server
	own.Path = "/" + c.name
	c.database = own.String()

	return nil
}

// createNetwork creates a network namespace that can reach only Postgres on this machine.
func (c *container) createNetwork(ctx context.Context) error {
	if _, err := run(ctx, "ip", "netns", "add", c.name); err != nil {
		return err
	}

	c.later("ip", "netns", "delete", c.name) // along with its interface, and thus the other end

	for _, command := range []string{
		"link add " + c.name + " type veth peer name eth0 netns " + c.name,
		"address add " + outside + "/30 dev " + c.name,
		"link set " + c.name + " up",
		"-n " + c.name + " address add " + inside + "/30 dev eth0",
		"-n " + c.name + " link set eth0 up",
		"-n " + c.name + " link set lo up",
	} {
		if _, err := run(ctx, "ip", strings.Fields(command)...); err != nil {
			return err
		}
	}

	return c.forwardPostgres(ctx)
}

// forwardPostgres lets the container reach Postgres, which listens on loopback only.
func (c *container) forwardPostgres(ctx context.Context) error {
	database, err := url.Parse(c.database)
	if err != nil {
		return err
	}

	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", outside+":0")
	if err != nil {
		return err
	}

	c.cleanUp(func(context.Context) error { return listener.Close() })

	server := database.Host
	database.Host = listener.Addr().String()
	c.database = database.String()

	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return // closed
			}

			to, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
			if err != nil {
				_ = from.Close()

				continue
			}

			go forward(from, to)
			go forward(to, from)
		}
	}()

	return nil
}

// forward copies until either end closes.
func forward(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	_, _ = from.Close(), to.Close()
}

// start runs the service as the image's user. The limits are those of this process,
// because Podman's defaults need a privilege that root in a container may lack.
func (c *container) start(ctx context.Context) error {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}

	c.cleanUp(func(ctx context.Context) error {
		_, err := run(ctx, "podman", "rm", "--force", "--ignore", "--time", "0", c.name)

		return err
	})

	_, err := run(ctx, "podman", "--runtime", "runc", "run", "--detach", "--name", c.name, "--network", "ns:/run/netns/"+c.name,
		"--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges",
		"--health-interval", "disable", // needs systemd; this test runs the check itself
		"--ulimit", fmt.Sprintf("nofile=%d:%d", files.Cur, files.Cur), "--ulimit", "nproc=4096:4096",
		"--env", "DATABASE_URL="+c.database, "--env", "MILLRACE_LOG__FORMAT=json", c.tag)
	if err != nil {
		return err
	}

	c.started = true
	c.pid, err = run(ctx, "podman", "inspect", "--format", "{{.State.Pid}}", c.name)

	return err
}

// ask sends a request to a non-loopback address of the namespace.
func ask(ctx context.Context, path string) (body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+inside+":9465"+path, nil)
	if err != nil {
		return "", err
	}

	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close() //nolint:errcheck // it is only read

	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", path, response.Status, content)
	}

	return string(content), err
}

// probe waits until the service is ready, and reads its metrics.
func (c *container) probe(ctx context.Context) error {
	err := eventually(ctx, readyTimeout, func(ctx context.Context) error {
		_, err := ask(ctx, "/readyz")

		return err
	})
	if err != nil {
		return err
	}

	if _, err := ask(ctx, "/livez"); err != nil {
		return err
	}

	metrics, err := ask(ctx, "/metrics")
	if err != nil {
		return err
	}

	return check(strings.Contains(metrics, "\nmillrace_ready 1\n"), "/metrics has no millrace_ready 1")
}

// closed checks that the operator API listens only on loopback.
func (c *container) closed(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", inside+":9464")
	if err == nil {
		_ = conn.Close()
	}

	return check(errors.Is(err, syscall.ECONNREFUSED), "the operator API at %s:9464: %v, expected that it refuses the connection", inside, err)
}

// exec runs a command in the container.
func (c *container) exec(ctx context.Context, args ...string) (string, error) {
	return run(ctx, "podman", append([]string{"--runtime", "runc", "exec", c.name}, args...)...)
}

// healthcheck runs the command of the image's HEALTHCHECK, and the readiness probe.
func (c *container) healthcheck(ctx context.Context) error {
	if version, err := c.exec(ctx, "/millrace", "version"); err != nil || version != c.version {
		return fmt.Errorf("the program reports version %q, expected %q: %w", version, c.version, err)
	}

	if _, err := c.exec(ctx, c.image.Healthcheck.Test[1:]...); err != nil {
		return err
	}

	_, err := c.exec(ctx, "/millrace", "healthcheck", "ready")

	return err
}

// publish sends stock and an order through the service.
func (c *container) publish(ctx context.Context) error {
	if _, err := c.exec(ctx, "/millrace", "publish", "inventory.restocked", `{"product_id": "p", "quantity": 5}`); err != nil {
		return err
	}

	if err := c.shows(ctx, `(?m)^p +5 +0 +0$`, "stock", "p"); err != nil {
		return err
	}

	order := `{"order": {"id": "o", "product_id": "p", "quantity": 2, "total_amount": 9.5}}`
	if _, err := c.exec(ctx, "/millrace", "publish", "orders.created", order); err != nil {
		return err
	}

	return c.shows(ctx, `(?m)^status +completed$`, "orders", "show", "o")
}

// shows waits until a command's output matches a pattern.
func (c *container) shows(ctx context.Context, pattern string, command ...string) error {
	return eventually(ctx, readyTimeout, func(ctx context.Context) error {
		out, err := c.exec(ctx, append([]string{"/millrace"}, command...)...)
		if err != nil {
			return err
		}

		return check(regexp.MustCompile(pattern).MatchString(out), "%v prints\n%s", command, out)
	})
}

// write checks that nobody can write to the root directory, and that the process has no
// privileges.
func (c *container) write(context.Context) error {
	err := os.WriteFile("/proc/"+c.pid+"/root/written", nil, 0o600)

	status, statusErr := os.ReadFile("/proc/" + c.pid + "/status")
	if statusErr != nil {
		return statusErr
	}

	errs := []error{check(errors.Is(err, syscall.EROFS), "writing to the root: %v, expected a read-only file system", err)}

	for _, line := range []string{`Uid:\s+65532\s+65532\s+65532\s+65532`, `CapEff:\s+0+`, `CapBnd:\s+0+`, `NoNewPrivs:\s+1`} {
		errs = append(errs, check(regexp.MustCompile(`(?m)^`+line+`$`).Match(status), "the status of the process has no %s:\n%s", line, status))
	}

	return errors.Join(errs...)
}

// stop sends SIGTERM and expects a complete drain.
func (c *container) stop(ctx context.Context) error {
	if _, err := run(ctx, "podman", "kill", "--signal", "TERM", c.name); err != nil {
		return err
	}

	waiting, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()

	code, err := run(waiting, "podman", "wait", c.name)
	if err != nil {
		return err
	}

	log, err := c.log(ctx)
	if err != nil {
		return err
	}

	return errors.Join(
		check(code == "0", "it ends with exit code %s", code),
		check(strings.Contains(log, `"msg":"drained"`), "the log does not say that it drained"),
	)
}

// log returns the container log.
func (c *container) log(ctx context.Context) (string, error) {
	return run(ctx, "sh", "-c", `podman logs "$1" 2>&1`, "sh", c.name)
}

// explain adds the container log to an error.
func (c *container) explain(err error) error {
	if !c.started {
		return err
	}

	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()

	log, logErr := c.log(ctx)

	return errors.Join(err, logErr, errors.New("container log:\n"+log))
}
