package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace"
	"github.com/millracehq/millrace/internal/app"
	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/terminal"
	"github.com/millracehq/millrace/internal/localpg"
	"github.com/millracehq/millrace/internal/telemetry"
)

// devDir is where `millrace dev` keeps its Postgres, below the working
// directory. Other commands find it there when no database is configured.
const devDir = ".local/postgres"

// options holds the global flags, and the flags that many commands share.
type options struct {
	file   string
	url    string
	broker string
	level  string
	json   bool

	limit int            // set by limited
	by    activity.Actor // set by recorded
}

// load reads the configuration without validating it.
func (o *options) load() (config.Config, error) {
	overrides := map[string]any{}

	for key, value := range map[string]string{"postgres.url": o.url, "broker.kind": o.broker, "log.level": o.level} {
		if value != "" {
			overrides[key] = value
		}
	}

	cfg, err := config.Load(o.file, overrides)
	if err != nil {
		return cfg, event.Errorf(event.Invalid, "%v", err)
	}

	cfg.Failed.Release, cfg.Outbox.Release = version, version

	return cfg, nil
}

// clientConfig returns the configuration of a command that may run alongside a running
// service: few connections, and the Postgres of `millrace dev` by default.
func (o *options) clientConfig() (config.Config, error) {
	cfg, err := o.load()
	if err == nil && cfg.Postgres.URL == "" {
		server, err := localpg.Find(devDir)
		if err != nil {
			return cfg, event.Errorf(event.Invalid, "no database: run `millrace dev` in this directory, or set DATABASE_URL or --database-url")
		}

		cfg.Postgres.URL = postgres.Secret(server.URL())
	}

	cfg.Postgres.MaxConns = 4

	return cfg, err
}

func assemble(cfg config.Config) (*app.Service, func(), error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, event.Errorf(event.Invalid, "invalid configuration:\n%v", err)
	}

	return millrace.New(cfg, newLogger(cfg))
}

func newLogger(cfg config.Config) *slog.Logger {
	return telemetry.NewLogger(cfg.Log, terminal.NewWriter(os.Stderr))
}

// call is one run of a command.
type call struct {
	*options
	*app.Service // nil if the command needs none

	cfg  config.Config // of Service
	ctx  context.Context
	cmd  *cobra.Command
	args []string
}

// command returns cmd with fn as its implementation. The usage line defines how
// many arguments it takes.
func command(opts *options, cmd *cobra.Command, fn func(*call) error, flags ...flag) *cobra.Command {
	if cmd.Args == nil {
		cmd.Args = arguments(cmd.Use)
	}

	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkFlags(cmd.Flags()); err != nil {
			return err
		}

		opts.by.Request = event.NewID()

		return fn(&call{options: opts, ctx: cmd.Context(), cmd: cmd, args: args})
	}

	for _, add := range flags {
		add(opts, cmd.Flags())
	}

	return cmd
}

// checkFlags refuses flags with text that Postgres cannot store. File names may contain
// any bytes.
func checkFlags(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		problem := event.Storable(f.Value.String())
		if problem != nil && f.Name != "file" && f.Name != "config" {
			err = event.Errorf(event.Invalid, "--%s: %v", f.Name, problem)
		}
	})

	return err
}

// operation is like command, for a function that needs a service.
func operation(opts *options, cmd *cobra.Command, fn func(*call) error, flags ...flag) *cobra.Command {
	return assembled(opts, cmd, opts.clientConfig, fn, flags...)
}

// assembled is like command, for a function that needs a service with the configuration
// that load returns.
func assembled(opts *options, cmd *cobra.Command, load func() (config.Config, error), fn func(*call) error, flags ...flag) *cobra.Command {
	return command(opts, cmd, func(c *call) (err error) {
		if c.cfg, err = load(); err != nil {
			return err
		}

		service, release, err := assemble(c.cfg)
		if err != nil {
			return err
		}
		defer release()

		c.Service = service

		return fn(c)
	}, flags...)
}

// query is like operation, for a command that prints the result of read.
func query[T any](opts *options, cmd *cobra.Command, read func(*call) (T, error), write func(io.Writer, T), flags ...flag) *cobra.Command {
	return operation(opts, cmd, func(c *call) error {
		value, err := read(c)
		if err != nil {
			return err
		}

		return c.print(value, func(w io.Writer) { write(w, value) })
	}, flags...)
}

// listing is like query, for a command that lists at most --limit items. If there are
// more, it says how many, on standard error.
func listing[T any](opts *options, cmd *cobra.Command, read func(c *call, limit int) ([]T, error), count func(*call) (int, error),
	write func(io.Writer, []T), flags ...flag,
) *cobra.Command {
	return operation(opts, cmd, func(c *call) error {
		return list(c, func(limit int) ([]T, error) { return read(c, limit) }, func() (int, error) { return count(c) }, write)
	}, append(flags, limited)...)
}

// list prints at most --limit items. If there are more, it also prints the total.
func list[T any](c *call, read func(limit int) ([]T, error), count func() (int, error), write func(io.Writer, []T)) error {
	all, err := read(c.limit + 1)
	if err != nil {
		return err
	}

	shown := all[:min(len(all), c.limit)]
	if err := c.print(shown, func(w io.Writer) { write(w, shown) }); err != nil || len(all) == len(shown) {
		return err
	}

	n, err := count()
	if err != nil {
		return err
	}

	total := thousands(n)
	if n > postgres.MaxCount {
		total = "more than " + thousands(max(postgres.MaxCount, len(shown)))
	}

	fmt.Fprintf(c.cmd.ErrOrStderr(), "%s of %s; --limit lists more\n", thousands(len(shown)), total)

	return nil
}

func messages[N int | int64](n N) string { return event.Plural(n, "message", "messages") }

// thousands formats a number below a million.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}

	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// parent returns a command that only has subcommands.
func parent(use, short, example string, children ...func(*options) *cobra.Command) func(*options) *cobra.Command {
	return func(opts *options) *cobra.Command {
		return group(opts, &cobra.Command{Use: use, Short: short, Example: "  millrace " + example}, children...)
	}
}

// group completes a command that only has subcommands.
func group(opts *options, cmd *cobra.Command, children ...func(*options) *cobra.Command) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}

		return unknownCommand(cmd, args[0])
	}
	cmd.Args = cobra.ArbitraryArgs

	for _, child := range children {
		cmd.AddCommand(child(opts))
	}

	return cmd
}

func unknownCommand(parent *cobra.Command, name string) error {
	text := fmt.Sprintf("unknown command %q for %q", name, parent.CommandPath())
	commands := postgres.Column(parent.Commands(), (*cobra.Command).Name)

	if near := event.Nearest(name, commands); len(near) > 0 {
		text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}

	return event.Errorf(event.Unknown, "%s (`%s --help` lists the commands)", text, parent.CommandPath())
}

// arguments checks that there are as many arguments as a usage line names:
// NAME is required, [NAME] is not, [NAME...] may be repeated.
func arguments(use string) cobra.PositionalArgs {
	least, most := 0, 0

	for _, name := range strings.Fields(use)[1:] {
		switch {
		case strings.HasSuffix(name, "...]"):
			most = 1 << 30
		case strings.HasPrefix(name, "["):
			most++
		default:
			least++
			most++
		}
	}

	check := cobra.RangeArgs(least, most)
	if least == most {
		check = cobra.ExactArgs(least)
	}

	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return event.Errorf(event.Invalid, "%v: usage: %s", err, cmd.UseLine())
		}

		for _, arg := range args {
			if err := event.Storable(arg); err != nil {
				return event.Errorf(event.Invalid, "%q: %v", arg, err)
			}
		}

		return nil
	}
}

func (c *call) out() io.Writer { return c.cmd.OutOrStdout() }

// print writes v as JSON, or as text.
func (c *call) print(v any, text func(w io.Writer)) error {
	if c.json {
		encoder := json.NewEncoder(c.out())
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)

		return encoder.Encode(v)
	}

	w := tabwriter.NewWriter(c.out(), 0, 0, 2, ' ', 0)
	text(w)

	return w.Flush()
}

// Errors for actions that cannot be undone.
var (
	errUnasked     = event.Errorf(event.Invalid, "--yes: is missing, required without a terminal")
	errUnconfirmed = event.Errorf(event.Invalid, "not confirmed: nothing was changed")
)

// interactive reports whether there is a terminal on which to ask.
func (c *call) interactive() bool {
	in, isFile := c.cmd.InOrStdin().(*os.File)

	return isFile && isatty.IsTerminal(in.Fd())
}

// confirm asks a question on the terminal and returns an error unless the answer is
// yes. It refuses if there is no terminal.
func (c *call) confirm(question string) error {
	if !c.interactive() {
		return errUnasked
	}

	return ask(c.cmd.InOrStdin(), c.cmd.ErrOrStderr(), question)
}

func ask(in io.Reader, out io.Writer, question string) error {
	fmt.Fprintf(out, "%s [y/N] ", question)

	answer, _ := bufio.NewReader(in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	default:
		return errUnconfirmed
	}
}

// line returns a function that writes a value as one line of JSON.
func line[T any](c *call) func(T) error {
	encoder := json.NewEncoder(c.out())
	encoder.SetEscapeHTML(false)

	return func(v T) error { return encoder.Encode(v) }
}

// table returns a function that writes a list as a table with column headings.
func table[T any](columns string, cells func(T) []any) func(io.Writer, []T) {
	return func(w io.Writer, list []T) {
		fmt.Fprintln(w, strings.ReplaceAll(columns, " ", "\t"))

		for _, item := range list {
			row(w, cells(item)...)
		}
	}
}

// row writes a row of a table.
func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = cell(c)
	}

	fmt.Fprintln(w, strings.Join(texts, "\t"))
}

// maxCell is the maximum length of a cell in characters.
const maxCell = 200

func cell(v any) string {
	switch v := v.(type) {
	case time.Time:
		return stamp(v)
	case *time.Time:
		if v == nil {
			return "never"
		}

		return stamp(*v)
	default:
		return oneLine(fmt.Sprint(v), maxCell)
	}
}

// stamp formats a time in the operator's time zone, with its UTC offset.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000Z07:00") }

// oneLine escapes and shortens s, so that it cannot break a table.
func oneLine(s string, limit int) string {
	s = terminal.Line(s)
	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit]) + "..."
	}

	return s
}

// Bounds for --limit and --days.
const (
	maxLimit = 100_000
	maxDays  = 3660
)

// flag adds flags to a command.
type flag func(*options, *pflag.FlagSet)

// text adds a flag that takes a string.
func text(to *string, name, value, usage string) flag {
	return func(_ *options, flags *pflag.FlagSet) { flags.StringVar(to, name, value, usage) }
}

// yes adds a flag that is off by default.
func yes(to *bool, name, usage string) flag {
	return func(_ *options, flags *pflag.FlagSet) { flags.BoolVar(to, name, false, usage) }
}

// limited adds --limit.
func limited(o *options, flags *pflag.FlagSet) {
	number(&o.limit, "limit", 20, maxLimit, "list at most this many")(o, flags)
}

// recorded adds --by and --why to a command that records its operator.
func recorded(o *options, flags *pflag.FlagSet) {
	flags.StringVar(&o.by.Who, "by", osUser(), "record this name as the operator")
	flags.StringVar(&o.by.Why, "why", "", "record this reason")
}

// number adds a flag that takes a number from 1 to highest.
func number(to *int, name string, value, highest int, usage string) flag {
	return func(_ *options, flags *pflag.FlagSet) {
		*to = value
		flags.Var(count{to: to, highest: highest}, name, usage)
	}
}

// count implements pflag.Value.
type count struct {
	to      *int
	highest int
}

func (c count) String() string {
	if c.to == nil {
		return ""
	}

	return strconv.Itoa(*c.to)
}

func (count) Type() string { return "int" }

func (c count) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > c.highest {
		return fmt.Errorf("expected a number from 1 to %d", c.highest)
	}

	*c.to = n

	return nil
}

func osUser() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}

	return "unknown"
}
