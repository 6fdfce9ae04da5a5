package notification

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Webhook retries. Standard Webhooks 1.0 recommends increasing delays over several days;
// with jitter, these settings add up to about three.
const (
	WebhookPause    = 5 * time.Second // after the first attempt
	WebhookMaxPause = time.Hour
	WebhookAttempts = 100
)

// Limits on a webhook.
const (
	webhookTimeout = 15 * time.Second // Standard Webhooks 1.0 recommends 15 to 30 s
	maxHeaders     = 16 << 10         // bytes of the response's headers
	maxAnswer      = 1 << 10          // bytes of the response that are recorded
)

// webhook posts notifications, signed according to Standard Webhooks 1.0.
type webhook struct {
	url    string
	signer *standardwebhooks.Webhook
	client *http.Client
	// final lists the statuses after which a webhook is not posted again.
	final []int
}

func newWebhook(cfg WebhookConfig) (*webhook, error) {
	signer, err := standardwebhooks.NewWebhook(string(cfg.Secret))
	if err != nil {
		return nil, fmt.Errorf("notification.webhook.secret: %w", err)
	}

	allowed, err := cfg.networks()
	if err != nil {
		return nil, err
	}

	dialer := &net.Dialer{Timeout: webhookTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		return checkAddress(address, allowed)
	}}

	return &webhook{url: string(cfg.URL), signer: signer, final: cfg.FinalStatuses, client: &http.Client{
		Timeout: webhookTimeout,
		// No proxy, because checkAddress would see the proxy's address.
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: webhookTimeout, MaxIdleConnsPerHost: 16,
			MaxResponseHeaderBytes: maxHeaders, IdleConnTimeout: time.Minute,
		},
		// A redirect could send the signature anywhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// checkAddress refuses to dial an address that is neither public nor allowed.
// It runs after name resolution.
func checkAddress(address string, allowed []netip.Prefix) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dialling %s: %w", address, err)
	}

	ip := target.Addr().Unmap()

	for _, network := range allowed {
		if network.Contains(ip) {
			return nil
		}
	}

	if !ip.IsGlobalUnicast() || ip.IsPrivate() || slices.ContainsFunc(notPublic, func(n netip.Prefix) bool { return n.Contains(ip) }) {
		return fmt.Errorf("%s is not a public address: add its network to notification.webhook.allow_networks to allow it", ip)
	}

	return nil
}

// notPublic lists networks that net/netip considers global although IANA's
// special-purpose address registries do not. The IPv6 networks embed IPv4
// addresses.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),      // this host
	netip.MustParsePrefix("100.64.0.0/10"),  // carrier-grade NAT: RFC 6598
	netip.MustParsePrefix("192.0.0.0/24"),   // protocol assignments
	netip.MustParsePrefix("198.18.0.0/15"),  // benchmarks
	netip.MustParsePrefix("240.0.0.0/4"),    // reserved
	netip.MustParsePrefix("64:ff9b::/96"),   // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64, local
	netip.MustParsePrefix("2001::/32"),      // Teredo
	netip.MustParsePrefix("2002::/16"),      // 6to4
	netip.MustParsePrefix("::/96"),          // IPv4 inside IPv6, deprecated
}

// body is the JSON that is posted. It depends on the message alone, so that all
// attempts under one webhook id post the same bytes.
type body struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      Message   `json:"data"`
}

// ErrGone means that the receiver no longer wants webhooks.
var ErrGone = errors.New("the receiver answered 410 Gone: it no longer wants webhooks")

// send posts a webhook. Only 410 and the configured statuses reject it; after any
// other failure it is posted again later. A receiver that does not answer or is
// overloaded also counts as failing, so that all webhooks wait for it.
func (w *webhook) send(ctx context.Context, e event.Event[WebhookDue]) (answer string, err error) {
	request, err := w.request(ctx, e)
	if err != nil {
		return "", err
	}

	response, err := w.client.Do(request)
	if err != nil {
		// Leave out the URL, which often contains a secret.
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err
		}

		return "", event.Overloaded(WebhookReceiver, 0, fmt.Errorf("posting webhook: %w", err))
	}
	defer func() { _ = response.Body.Close() }()

	text, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer+utf8.UTFMax))
	answer = response.Status + " " + e.Payload.anonymous(event.Shorten(string(bytes.TrimSpace(text)), maxAnswer))
	code, after := response.StatusCode, event.RetryAfter(response.Header.Get("Retry-After"))
	refusal := fmt.Errorf("posting webhook: the receiver answered %s", answer)

	switch {
	case code >= http.StatusOK && code < http.StatusMultipleChoices:
		return answer, nil
	case code == http.StatusGone:
		return "", event.Reject(fmt.Errorf("%w: %s", ErrGone, answer))
	case slices.Contains(w.final, code):
		return "", event.Reject(refusal)
	case slices.Contains(overloaded, code):
		return "", event.Overloaded(WebhookReceiver, after, refusal)
	default:
		return "", event.Later(after, refusal)
	}
}

// overloaded lists the statuses after which Standard Webhooks 1.0 recommends slowing
// down.
var overloaded = []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}

// request signs a webhook. The signature includes the time of the attempt.
func (w *webhook) request(ctx context.Context, e event.Event[WebhookDue]) (*http.Request, error) {
	now := time.Now()

	data, err := json.Marshal(body{Type: "notification", Timestamp: e.Payload.At.Time, Data: e.Payload.Message})
	if err != nil {
		return nil, fmt.Errorf("encoding webhook: %w", err)
	}

	id := "msg_" + e.ID.String()

	signature, err := w.signer.Sign(id, now, data)
	if err != nil {
		return nil, fmt.Errorf("signing webhook: %w", err)
	}

	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("preparing webhook: %w", err)
	}

	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "millrace")
	request.Header.Set("Webhook-Id", id)
	request.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	request.Header.Set("Webhook-Signature", signature)

	return request, nil
}
