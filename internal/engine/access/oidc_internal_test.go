package access

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// If a provider returns no keys, the sender of a token must not look like an
// intruder.
func TestATokenIsNotRefusedWhileItsProviderHasNoKeys(t *testing.T) {
	t.Parallel()

	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)

	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"id_token_signing_alg_values_supported":["RS256"]}`, server.URL, server.URL+"/keys")
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })

	cfg := DefaultOIDC()
	cfg.Issuer, cfg.Audience = server.URL, "millrace"

	p, err := newProvider(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}

	encode := base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"iss":%q,"aud":"millrace","sub":"ada","exp":%d}`, server.URL, time.Now().Add(time.Hour).Unix())
	token := encode([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + encode([]byte(claims)) + "." + encode([]byte("signature"))

	_, err = p.verify(t.Context(), token)
	if _, refused := errors.AsType[*RefusedError](err); err == nil || refused {
		t.Errorf("got %v, expected that the provider cannot be reached", err)
	}
}
