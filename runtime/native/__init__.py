"""Device backends in C++, and how they are built against TVM's wheels."""
