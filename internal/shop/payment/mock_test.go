package payment_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// stripeMock runs stripe-mock, which refuses requests that violate Stripe's OpenAPI
// description. It is stateless: its answers are examples.
func stripeMock(tb testing.TB) *url.URL {
	tb.Helper()

	// With -n the command builds the program and prints its path.
	path, err := exec.CommandContext(tb.Context(), "go", "tool", "-modfile=../../../tools/stripe-mock/go.mod", "-n", "stripe-mock").Output()
	if err != nil {
		tb.Fatalf("building stripe-mock: %v", err)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}

	address := listener.Addr().String()
	_ = listener.Close()

	var output bytes.Buffer

	mock := exec.CommandContext(tb.Context(), strings.TrimSpace(string(path)), "-http-addr", address)
	mock.Stdout, mock.Stderr = &output, &output

	if err := mock.Start(); err != nil {
		tb.Fatalf("starting stripe-mock: %v", err)
	}

	tb.Cleanup(func() { _ = mock.Wait() }) // the test's context stops it

	pgtest.Eventually(tb, "stripe-mock listens", func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
		}

		return err == nil
	})

	return &url.URL{Scheme: "http", Host: address}
}

func TestRequestsFollowStripesDescription(t *testing.T) {
	t.Parallel()

	mock := stripeMock(t)
	refusesUnknownParameters(t, mock)

	front := &recorder{tb: t, answered: map[string]int{}}
	gateway := newGateway(t, stripeConfig(front.serve(mock)), pgtest.New(t))

	// The second charge retrieves the intent. The results do not matter: the mock's
	// examples have a different amount.
	for range 2 {
		_, _ = gateway.Charge(t.Context(), chargeFor("order"))
	}

	if _, err := gateway.Find(t.Context(), chargeFor("another")); err != nil {
		t.Error(err)
	}

	refund := payment.Refund{OrderID: "order", TransactionID: "pi_1", Amount: money.MustParse("1"), Currency: "USD"} // the example's amount

	for _, refund.FailedID = range []string{"", "re_1"} {
		if _, err := gateway.Refund(t.Context(), refund); err != nil {
			t.Error(err)
		}
	}

	if err := gateway.Ledger(t.Context(), time.Now().Add(-time.Hour), func(payment.Entry) error { return nil }); err != nil {
		t.Error(err)
	}

	for _, name := range []string{
		"POST /v1/payment_intents", "POST /v1/payment_intents/ID/confirm", "GET /v1/payment_intents/ID",
		"GET /v1/payment_intents/search", "GET /v1/payment_intents", "POST /v1/refunds", "GET /v1/refunds",
	} {
		if front.answered[name] != http.StatusOK {
			t.Errorf("%s: answered %s", name, fmt.Sprint(front.answered[name]))
		}
	}
}

// refusesUnknownParameters fails the test if stripe-mock accepts any request.
func refusesUnknownParameters(t *testing.T, mock *url.URL) {
	t.Helper()

	wrong, err := http.NewRequestWithContext(t.Context(), http.MethodPost, mock.String()+"/v1/refunds", strings.NewReader("nonsense=1"))
	if err != nil {
		t.Fatal(err)
	}

	wrong.Header.Set("Authorization", "Bearer sk_test_hunter2")
	wrong.Header.Set("Content-Type", "application/x-www-form-urlencoded")

	response, err := http.DefaultClient.Do(wrong)
	if err != nil {
		t.Fatal(err)
	}

	if _ = response.Body.Close(); response.StatusCode != http.StatusBadRequest {
		t.Fatalf("stripe-mock accepts an unknown parameter: %s", response.Status)
	}
}

// recorder is a proxy. It records the status of each kind of request, and fails the test
// if a request is not answered with 200.
type recorder struct {
	tb       testing.TB
	mu       sync.Mutex
	answered map[string]int
}

// serve starts the proxy in front of a server and returns its URL.
func (r *recorder) serve(server *url.URL) string {
	proxy := httputil.NewSingleHostReverseProxy(server)
	proxy.ModifyResponse = r.record
	front := httptest.NewServer(proxy)
	r.tb.Cleanup(front.Close)

	return front.URL
}

func (r *recorder) record(response *http.Response) error {
	body, err := io.ReadAll(response.Body)
	response.Body = io.NopCloser(bytes.NewReader(body))
	name := response.Request.Method + " " + strings.TrimSuffix(response.Request.URL.Path, "/")

	if i := strings.Index(name, "/pi_"); i > 0 {
		name = name[:i] + "/ID" + strings.TrimLeft(name[i+4:], "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
	}

	r.mu.Lock()
	defer r.mu.Unlock()

	r.answered[name] = response.StatusCode
	if response.StatusCode != http.StatusOK {
		r.tb.Errorf("%s: %d %s", name, response.StatusCode, body)
	}

	return err
}
