package e2e_test

import (
	"os"
	"testing"

	"github.com/ai-identity/ai-identity/e2e"
)

func TestMain(m *testing.M) { os.Exit(e2e.Main(m)) }
