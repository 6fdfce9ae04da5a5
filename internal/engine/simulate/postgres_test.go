package simulate_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// server is a model of Postgres that speaks its protocol over pipes, so that the service
// uses it through pgx. It knows the statements of the engine (see statements) and no SQL.
//
// Transactions run one after the other: their interleaving is tested with real servers.
// What differs from run to run is when a statement arrives, whether its answer does, and
// when a connection breaks.
type server struct {
	w *world
	// lock is held by the transaction that runs.
	lock chan struct{}
	// now is the committed state.
	now *tables
	// marks are advisory locks, by key and then by session.
	marks    map[[2]int64]map[*session]bool
	sessions []*session
	pids     uint32
}

func newServer(w *world) *server {
	return &server{
		w: w, lock: make(chan struct{}, 1), now: newTables(),
		marks: map[[2]int64]map[*session]bool{},
	}
}

// session is a connection of a process.
type session struct {
	*server

	owner    *process
	pid      uint32
	conn     net.Conn
	back     *pgproto3.Backend
	types    *pgtype.Map
	prepared map[string]*statement
	texts    map[string]string
	// tx is the state as the open transaction sees it, nil without one; failed is true
	// after an error in it.
	tx     *tables
	failed bool
	// portal is the statement that is bound.
	portal *query
	// broke is true after an error, until the client has synchronized.
	broke bool
	// after runs once the transaction is committed.
	after     []func()
	listening bool
	notices   chan string
}

var errRefused = errors.New("the model refuses the connection")

// dial connects a process.
func (s *server) dial(owner *process) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		s.w.sleep(ctx, 2*time.Millisecond)

		s.w.mu.Lock()
		defer s.w.mu.Unlock()

		if owner.dead || s.w.chance(s.w.faults.Load().dial) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errRefused}
		}

		theirs, ours := net.Pipe()
		s.pids++
		c := &session{
			server: s, owner: owner, pid: s.pids, conn: ours, back: pgproto3.NewBackend(ours, ours), types: pgtype.NewMap(),
			prepared: map[string]*statement{}, texts: map[string]string{}, notices: make(chan string, 100),
		}
		s.sessions = append(s.sessions, c)

		s.w.running.Go(c.serve)

		return theirs, nil
	}
}

// kill breaks all connections of a process.
func (s *server) kill(owner *process) {
	for _, c := range s.sessions {
		if c.owner == owner {
			_ = c.conn.Close()
		}
	}
}

func (c *session) serve() {
	defer c.end()

	if !c.greet() {
		return
	}

	requests := make(chan pgproto3.FrontendMessage, 1000)
	broken := make(chan struct{})

	// Receive reuses its messages, so each is copied before the next is read.
	c.w.running.Go(func() {
		defer close(broken)

		for {
			msg, err := c.back.Receive()
			if err != nil {
				return
			}

			requests <- copyOf(msg)
		}
	})

	var group []pgproto3.FrontendMessage

	for {
		select {
		case msg := <-requests:
			group = append(group, msg)

			switch msg.(type) {
			case *pgproto3.Sync, *pgproto3.Query:
				if !c.answer(group) {
					return
				}

				group = nil
			case *pgproto3.Terminate:
				return
			}
		case payload := <-c.notices:
			c.back.Send(&pgproto3.NotificationResponse{PID: c.pid, Channel: "millrace_outbox", Payload: payload})

			if c.back.Flush() != nil {
				return
			}
		case <-broken:
			return
		}
	}
}

// copyOf copies what a message holds, because the reader reuses its memory.
func copyOf(msg pgproto3.FrontendMessage) pgproto3.FrontendMessage {
	data, err := msg.Encode(nil)
	if err != nil {
		panic(err)
	}

	data = data[5:] // the type and the length

	var fresh pgproto3.FrontendMessage

	switch msg.(type) {
	case *pgproto3.Parse:
		fresh = &pgproto3.Parse{}
	case *pgproto3.Describe:
		fresh = &pgproto3.Describe{}
	case *pgproto3.Bind:
		fresh = &pgproto3.Bind{}
	case *pgproto3.Execute:
		fresh = &pgproto3.Execute{}
	case *pgproto3.Close:
		fresh = &pgproto3.Close{}
	case *pgproto3.Query:
		fresh = &pgproto3.Query{}
	case *pgproto3.Sync:
		return &pgproto3.Sync{}
	case *pgproto3.Terminate:
		return &pgproto3.Terminate{}
	default:
		panic(fmt.Sprintf("the model knows no %T", msg))
	}

	if err := fresh.Decode(data); err != nil {
		panic(err)
	}

	return fresh
}

// greet answers the first message. It reports false for a request to cancel: the model
// cancels nothing, because the client closes such a connection.
func (c *session) greet() bool {
	msg, err := c.back.ReceiveStartupMessage()
	if _, starts := msg.(*pgproto3.StartupMessage); err != nil || !starts {
		return false
	}

	c.back.Send(&pgproto3.AuthenticationOk{})
	c.back.Send(&pgproto3.BackendKeyData{ProcessID: c.pid, SecretKey: []byte{0, 0, 0, 1}})
	c.back.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})

	return c.back.Flush() == nil
}

func (c *session) end() {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()

	_ = c.conn.Close()

	c.rollback()

	for _, holders := range c.marks {
		delete(holders, c)
	}

	c.sessions = slices.DeleteFunc(slices.Clone(c.sessions), func(other *session) bool { return other == c })
}

// answer answers a group of messages after a while. It reports false if the connection
// breaks, before or after the group took effect.
func (c *session) answer(group []pgproto3.FrontendMessage) bool {
	c.w.sleep(context.Background(), c.w.latency())

	c.w.mu.Lock()

	broken := c.w.chance(c.w.faults.Load().request)
	unavailable := c.w.chance(c.w.faults.Load().unavailable)

	if broken {
		c.w.tracef("postgres %d: breaks before %s", c.pid, c.title(group))
		c.w.mu.Unlock()

		return false
	}

	c.w.mu.Unlock()
	c.begin()
	c.w.mu.Lock()

	c.handleAll(group, unavailable)

	if c.tx == nil {
		c.unlock()
	}

	lost := c.w.chance(c.w.faults.Load().answer)
	if lost {
		c.w.tracef("postgres %d: breaks after %s", c.pid, c.title(group))
	}

	c.w.mu.Unlock()

	return !lost && c.back.Flush() == nil
}

// handleAll answers a group of messages. What the model does not know ends the test.
func (c *session) handleAll(group []pgproto3.FrontendMessage, unavailable bool) {
	defer func() {
		if reason := recover(); reason != nil {
			c.w.mu.Unlock()
			panic(fmt.Sprintf("seed %d: %v\n%s", c.w.seed, reason, debug.Stack()))
		}
	}()

	for _, msg := range group {
		c.handle(msg, unavailable)
	}
}

// begin waits until no other transaction runs.
func (c *session) begin() {
	if c.tx == nil {
		c.lock <- struct{}{}
	}
}

func (c *session) unlock() { <-c.lock }

// title names a group of messages in the trace.
func (c *session) title(group []pgproto3.FrontendMessage) string {
	var names []string

	for _, msg := range group {
		switch m := msg.(type) {
		case *pgproto3.Query:
			names = append(names, strings.Join(strings.Fields(m.String), " "))
		case *pgproto3.Bind:
			if s := c.prepared[m.PreparedStatement]; s != nil {
				names = append(names, s.text)
			}
		}
	}

	title := strings.Join(names, "; ")

	return title[:min(len(title), 80)]
}

func (c *session) rollback() {
	if c.tx != nil {
		c.tx, c.failed, c.after = nil, false, nil
		c.unlock()
	}
}

// handle answers one message. The world is locked.
func (c *session) handle(msg pgproto3.FrontendMessage, unavailable bool) {
	switch m := msg.(type) {
	case *pgproto3.Parse:
		c.prepared[m.Name] = c.find(m.Query)
		c.texts[m.Name] = m.Query
		c.reply(&pgproto3.ParseComplete{})
	case *pgproto3.Describe:
		c.describe(m)
	case *pgproto3.Bind:
		c.portal = &query{session: c, statement: c.prepared[m.PreparedStatement], sql: c.texts[m.PreparedStatement], bind: m}
		c.reply(&pgproto3.BindComplete{})
	case *pgproto3.Execute:
		c.execute(c.portal, unavailable)
	case *pgproto3.Query:
		c.simple(m.String, unavailable)
	case *pgproto3.Close:
		c.reply(&pgproto3.CloseComplete{})
	case *pgproto3.Sync:
		c.broke = false
		c.ready()
	}
}

// reply sends a message, unless an earlier one of the group has failed.
func (c *session) reply(msg pgproto3.BackendMessage) {
	if !c.broke {
		c.back.Send(msg)
	}
}

// describe answers what a statement takes and returns, or what the one that is bound returns.
func (c *session) describe(m *pgproto3.Describe) {
	s, formats := c.prepared[m.Name], []int16(nil)

	if m.ObjectType == 'P' {
		s, formats = c.portal.statement, c.portal.bind.ResultFormatCodes
	} else {
		c.reply(&pgproto3.ParameterDescription{ParameterOIDs: oids(s.params)})
	}

	if s.columns == "" {
		c.reply(&pgproto3.NoData{})
	} else {
		c.reply(describe(s, formats))
	}
}

func (c *session) ready() {
	status := byte('I')

	switch {
	case c.failed:
		status = 'E'
	case c.tx != nil:
		status = 'T'
	}

	c.back.Send(&pgproto3.ReadyForQuery{TxStatus: status})
}

// simple answers a statement of the simple protocol.
func (c *session) simple(sql string, unavailable bool) {
	defer c.ready()

	switch text := strings.TrimSpace(sql); {
	case controls(text):
		c.control(text)
	case text == "", text == "-- ping":
		c.back.Send(&pgproto3.EmptyQueryResponse{})
	default:
		s := c.find(sql)
		c.execute(&query{session: c, statement: s, sql: sql, describe: s.columns != ""}, unavailable)
	}
}

// controls reports whether a statement begins or ends a transaction.
func controls(sql string) bool {
	verb, _, _ := strings.Cut(sql, " ")

	return slices.Contains([]string{"begin", "commit", "rollback"}, verb)
}

// control begins or ends a transaction.
func (c *session) control(sql string) {
	switch {
	case strings.HasPrefix(sql, "begin"):
		c.tx = c.now.clone()
		c.complete("BEGIN")
	case sql == "commit":
		c.commit()
	default:
		if c.tx != nil {
			c.tx, c.failed, c.after = nil, false, nil
		}

		c.complete("ROLLBACK")
	}
}

func (c *session) commit() {
	if c.failed || c.tx == nil {
		c.tx, c.failed, c.after = nil, false, nil
		c.complete("ROLLBACK")

		return
	}

	c.w.committing(c.now, c.tx)
	c.now = c.tx
	c.tx = nil
	c.finish()

	c.complete("COMMIT")
}

func (c *session) complete(tag string) {
	c.back.Send(&pgproto3.CommandComplete{CommandTag: []byte(tag)})
}
